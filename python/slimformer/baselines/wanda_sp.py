"""Wanda-sp: in every layer the neurons go whose weights times inputs are smallest.

Wanda's product of weight and activation norm (Sun et al. 2023, arXiv 2306.11695), averaged over
a structure as the baseline of FLAP does (An et al. 2023, arXiv 2312.11983), layer by layer on the
pruned model's inputs. Neurons only: three KV groups have no even share. Repairs nothing.
"""

from __future__ import annotations

import numpy as np

from slimformer.baselines.in_turn import Array, prune_in_turn
from slimformer.baselines.task import Task
from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.engine import Moments


def prune(task: Task) -> Checkpoint:
    """The pruned model."""
    return prune_in_turn(task, _choose, gram=False)


def _choose(down: Array, inputs: Moments, count: int) -> tuple[tuple[int, ...], Array]:
    scores = np.abs(down).mean(axis=0) * np.sqrt(inputs.sum_squares)
    kept = np.sort(np.argsort(scores, kind="stable")[len(scores) - count :])
    return tuple(kept.tolist()), down[:, kept]
