"""Published methods under their own names, to compare with: one method a file.

Each does what its paper says, on the same calibration text, to the same budget and evaluated in
the same way; where a grouped-query model or this format forces a difference, its file says so.
"""

from __future__ import annotations

from collections.abc import Callable

from slimformer.baselines import (
    flap,
    linearpatch,
    llm_pruner,
    magnitude,
    osscar,
    replaceme,
    shortgpt,
    sleb,
    wanda_sp,
)
from slimformer.baselines.task import Task
from slimformer.checkpoint.checkpoint import Checkpoint

METHODS: dict[str, Callable[[Task], Checkpoint]] = {
    "magnitude": magnitude.prune,
    "Wanda-sp": wanda_sp.prune,
    "FLAP": flap.prune,
    "OSSCAR": osscar.prune,
    "LLM-Pruner": llm_pruner.prune,
    "ShortGPT": shortgpt.prune,
    "SLEB": sleb.prune,
    "ReplaceMe": replaceme.prune,
    "LinearPatch": linearpatch.prune,
}
"""By the name that the paper gives it."""

__all__ = ["METHODS", "Task"]
