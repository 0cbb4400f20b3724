"""SLEB: again and again the layer goes without which the model predicts text best.

Song et al. 2024, arXiv 2402.09025. Repairs nothing.
"""

from __future__ import annotations

from slimformer.baselines.task import Task
from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.prune.importance import score_model

TOKENS = 8192
"""Of the calibration text that are used: all layers are tried on them in every round."""


def prune(task: Task) -> Checkpoint:
    """The pruned model."""
    scores = score_model(
        task.dense,
        task.windows[: max(1, TOKENS // task.windows.shape[1])],
        task.budget,
        criterion="greedy_loss",
        structures=("layers",),
        protect=frozenset(),
        threads=task.threads,
        progress=task.progress,
    )
    return task.cheapest(scores, ("layers",), "global")
