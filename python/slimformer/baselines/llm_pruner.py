"""LLM-Pruner: groups of weights go whose first-order effect on the loss is smallest.

Ma et al. 2023, arXiv 2305.11627, element-wise first order: a group costs the sum of
``|weight * gradient|`` over all that belongs to it; the same share of KV groups and of neurons goes
from every layer but the first four and the last two of 32. Without the fine-tuning that follows
there. The gradient needs PyTorch.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from slimformer.baselines.task import Task
from slimformer.checkpoint.checkpoint import Checkpoint, Tensor
from slimformer.prune.importance import magnitude
from slimformer.prune.stream import Windows
from slimformer.train import to_torch
from slimformer.train.optional import require_torch

TOKENS = 4096
"""Of the calibration text that are used; the paper uses 1280."""

FIRST = 4 / 32
LAST = 2 / 32


def prune(task: Task) -> Checkpoint:
    """The pruned model.

    Raises
    ------
    MissingPackageError
        PyTorch is not installed.
    """
    require_torch("the baseline LLM-Pruner")
    effects = _effects(task.dense, task.windows[: max(1, TOKENS // task.windows.shape[1])])
    # A squared norm of roots is a sum of what they are the roots of.
    roots = {name: Tensor.of(np.sqrt(effect)) for name, effect in effects.items()}
    stand_in = Checkpoint(task.dense.name, task.dense.config, roots)
    count = len(task.dense.config.layers)
    protected = [*range(round(FIRST * count)), *range(count - round(LAST * count), count)]
    scores = tuple(magnitude.score(stand_in, index) for index in range(count))
    return task.cheapest(scores, ("kv_groups", "neurons"), "uniform", protect=frozenset(protected))


def _effects(dense: Checkpoint, windows: Windows) -> dict[str, npt.NDArray[np.float32]]:
    """``|weight * gradient of the mean loss|`` of every weight."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    module = to_torch(dense)
    for window in windows:
        ids = torch.from_numpy(window).long()
        logits = module(ids[None, :-1])[0]
        (F.cross_entropy(logits, ids[1:]) / len(windows)).backward()
    return {
        name: (value.detach() * value.grad).abs().numpy()
        for name, value in module.named_parameters()
    }
