"""Magnitude: in every layer the neurons with the smallest weights go.

Li et al. 2017, Pruning Filters for Efficient ConvNets, arXiv 1608.08710; for language models the
baseline "L2" of LLM-Pruner (Ma et al. 2023, arXiv 2305.11627). Needs no text, repairs nothing.
"""

from __future__ import annotations

from slimformer.baselines.task import Task
from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.prune.importance import magnitude
from slimformer.prune.remainder import dearest_units


def prune(task: Task) -> Checkpoint:
    """The pruned model."""
    return task.neurons(
        {
            index: dearest_units(magnitude.score(task.dense, index).neurons, count)
            for index, count in task.even_neurons().items()
        }
    )
