"""Zeros in place of small weights: which ones, and the checkpoint that has them.

Arithmetic only. The engine keeps a matrix with enough zeros without them, so that it takes fewer
bytes and less time.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.checkpoint import Checkpoint, Tensor
from slimformer.errors import ConfigError

Kept = npt.NDArray[np.bool_]


def largest(scores: npt.NDArray[Any], sparsity: float) -> Kept:
    """Which weights of a matrix are kept when the share ``sparsity`` of them becomes zero.

    Parameters
    ----------
    scores:
        What each weight is worth, of any shape: its magnitude, or another criterion's figure.
    sparsity:
        From 0 to 1; the number of zeros is rounded to the nearest. Of equal scores those that come
        first go first.

    Raises
    ------
    ConfigError
        ``sparsity`` is not a share.
    """
    if not 0 <= sparsity <= 1:
        raise ConfigError(f"sparsity: expected a share from 0 to 1, found {sparsity}")
    zeros = round(sparsity * scores.size)
    if zeros == 0:
        return np.ones(scores.shape, dtype=np.bool_)
    flat = scores.reshape(-1)
    limit = np.partition(flat, zeros - 1)[zeros - 1]
    kept: Kept = flat > limit
    equal = np.flatnonzero(flat == limit)
    kept[equal[zeros - int((flat < limit).sum()) :]] = True
    return kept.reshape(scores.shape)


def largest_of_groups(scores: npt.NDArray[Any], keep: int, of: int) -> Kept:
    """Which weights are kept when each run of ``of`` inputs keeps its ``keep`` best: 2 of 4, say.

    Parameters
    ----------
    scores:
        [outputs, inputs]. A last run of fewer inputs keeps the same share of them, rounded up.
    keep, of:
        1 <= keep <= of.

    Raises
    ------
    ConfigError
        The numbers are no such pattern, or the scores no matrix.
    """
    if not 1 <= keep <= of or scores.ndim != 2:
        raise ConfigError(
            f"pattern: expected keep {keep} of {of} with 1 <= keep <= of, and a matrix, "
            f"found {scores.ndim} dimensions"
        )
    outputs, inputs = scores.shape
    whole = inputs // of * of
    runs = scores[:, :whole].reshape(outputs, -1, of)
    parts = [_best(runs, keep).reshape(outputs, whole)]
    if whole < inputs:
        last = scores[:, whole:]
        parts.append(_best(last, math.ceil(keep * last.shape[1] / of)))
    return np.concatenate(parts, axis=1)


def _best(scores: npt.NDArray[Any], keep: int) -> Kept:
    """The ``keep`` largest along the last axis; of equal ones, the later."""
    order = np.argsort(scores, axis=-1, kind="stable")
    kept = np.zeros(scores.shape, dtype=np.bool_)
    np.put_along_axis(kept, order[..., scores.shape[-1] - keep :], values=True, axis=-1)
    return kept


def layer_matrices(checkpoint: Checkpoint) -> list[str]:
    """The matrices of the layers: all but embedding and head."""
    shapes = checkpoint.config.tensor_shapes()
    return [
        name for name, shape in shapes.items() if name.startswith("layers.") and len(shape) == 2
    ]


def sparsify(
    checkpoint: Checkpoint,
    sparsity: float | None = None,
    *,
    pattern: tuple[int, int] | None = None,
    names: Collection[str] | None = None,
) -> Checkpoint:
    """The model with the smallest weights of each matrix set to zero.

    Parameters
    ----------
    checkpoint:
        The model; nothing of it changes. Tensors are read and cut when they are asked for.
    sparsity:
        The share of each matrix that becomes zero, its smallest magnitudes.
    pattern:
        Instead of that, how many of how many neighbouring inputs each output keeps: ``(2, 4)``.
    names:
        The matrices it is done to; by default those of the layers.

    Raises
    ------
    ConfigError
        Both or neither of ``sparsity`` and ``pattern`` are given, one of them is out of range, or
        a name is not a matrix of the model.
    """
    if sparsity is not None and pattern is None:
        share = sparsity
        largest(np.empty(0), share)

        def choose(magnitudes: npt.NDArray[Any]) -> Kept:
            return largest(magnitudes, share)
    elif sparsity is None and pattern is not None:
        keep, of = pattern
        largest_of_groups(np.empty((0, 0)), keep, of)

        def choose(magnitudes: npt.NDArray[Any]) -> Kept:
            return largest_of_groups(magnitudes, keep, of)
    else:
        raise ConfigError("expected either sparsity or pattern")
    names = layer_matrices(checkpoint) if names is None else names
    for name in names:
        tensor = checkpoint.tensors.get(name)
        if tensor is None or len(tensor.shape) != 2:
            raise ConfigError(f"tensor {name}: expected a matrix of the model")
    made = {name: cut(checkpoint.tensors[name], choose) for name in names}
    return dataclasses.replace(checkpoint, tensors={**checkpoint.tensors, **made})


def cut(tensor: Tensor, choose: Callable[[npt.NDArray[Any]], Kept]) -> Tensor:
    """A tensor that keeps what ``choose`` takes of its magnitudes; cut when it is read."""

    def read() -> npt.NDArray[Any]:
        values = tensor.read()
        kept = choose(np.abs(values.astype(np.float32)))
        return np.where(kept, values, values.dtype.type(0))

    return Tensor(tensor.shape, tensor.dtype, read)
