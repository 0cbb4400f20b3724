"""ShortGPT: the layers that turn the residual stream least go.

Men et al. 2024, arXiv 2403.03853. Repairs nothing.
"""

from __future__ import annotations

from slimformer.baselines.task import Task
from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.prune.importance import score_model


def prune(task: Task) -> Checkpoint:
    """The pruned model."""
    scores = score_model(
        task.dense,
        task.windows,
        task.budget,
        criterion="block_influence",
        structures=("layers",),
        protect=frozenset(),
        threads=task.threads,
        progress=task.progress,
    )
    return task.cheapest(scores, ("layers",), "global")
