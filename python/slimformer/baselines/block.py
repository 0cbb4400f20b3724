"""A stretch of layers that goes as a whole: the one that changes the stream's direction least."""

from __future__ import annotations

from collections import deque

import numpy as np

from slimformer.baselines.task import Task
from slimformer.errors import BudgetError
from slimformer.prune import Recipe, explicit
from slimformer.prune.stream import Hidden, chunks, embed, inverse_lengths, layer_engine


def closest_block(task: Task, *, first: int = 0, extra: int = 0) -> range:
    """The block of as few layers as the budget allows whose ends are closest by cosine distance.

    Gromov et al. 2024, arXiv 2403.17887, over all tokens.

    Parameters
    ----------
    first
        The earliest layer that the block may begin with.
    extra
        Parameters of what takes its place.

    Raises
    ------
    BudgetError
        No block is large enough.
    """
    config, budget = task.dense.config, task.budget
    shapes = config.tensor_shapes()
    weights = [
        sum(
            int(np.prod(shape)) for name, shape in shapes.items() if name.startswith(f"layers.{i}.")
        )
        for i in range(len(config.layers))
    ]
    needed = config.non_embedding_parameters() + extra - budget.limit
    for size in range(1, len(weights) - first):
        starts = [
            start
            for start in range(first, len(weights) - size + 1)
            if sum(weights[start : start + size]) >= needed
        ]
        if starts:
            distances = _distances(task, size)
            start = min(starts, key=lambda start: distances[start])
            return range(start, start + size)
    raise BudgetError(f"{budget.label}: no block of layers weighs enough")


def without(task: Task, block: range) -> Recipe:
    """The recipe that drops the block."""
    return explicit(task.dense, drop_layers=tuple(block))


def stream_before(task: Task, layer: int) -> Hidden:
    """The dense residual stream that enters a layer, [windows, tokens, channels]."""
    stream = embed(task.dense, task.windows)
    for index in range(layer):
        advance(task, index, stream)
    return stream


def advance(task: Task, index: int, stream: Hidden) -> None:
    """Take the stream through a dense layer, in place."""
    engine = layer_engine(task.dense, index, threads=task.threads)
    for rows, after, _ in chunks(engine, stream):
        stream[rows] = after


def _distances(task: Task, size: int) -> list[float]:
    """Mean cosine distance from the entry to the exit of each block of so many layers."""
    stream = embed(task.dense, task.windows)
    entries = deque([_directions(stream)], maxlen=size)
    distances = []
    for index in range(len(task.dense.config.layers)):
        task.progress("compare blocks", index, len(task.dense.config.layers))
        advance(task, index, stream)
        direction = _directions(stream)
        if len(entries) == size:
            cosines = np.einsum("wtc,wtc->wt", entries[0], direction, dtype=np.float64)
            distances.append(float(np.mean(1 - cosines)))
        entries.append(direction)
    return distances


def _directions(stream: Hidden) -> Hidden:
    return stream * inverse_lengths(stream)
