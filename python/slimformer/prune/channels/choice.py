"""Which channels of the residual stream matter, and in which basis few of them matter most."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.engine import Moments
from slimformer.errors import BudgetError, DataError
from slimformer.progress import Progress, silent
from slimformer.prune.channels.reading import places, reading_metric
from slimformer.prune.recipe import Recipe
from slimformer.prune.stream import Windows, inverse_lengths

Array = npt.NDArray[np.float64]

LENGTH_SHARE = 0.3
"""How much the stream itself counts beside what is read of it when a basis is chosen: norms divide
by its length, so what is left of it should hold most of that."""


@dataclasses.dataclass(frozen=True)
class ChannelStatistics:
    """What the sub-blocks and the head find in the stream, summed over all these places.

    second_moment: of the stream divided by its length, mean over tokens, [channels, channels].
    metric: what its errors weigh in what is read, relative to all that is read at a place,
    [channels, channels]. reading: what each channel contributes to what is read, as a share,
    [channels].
    """

    second_moment: Array
    metric: Array
    reading: Array


def measure_channels(
    checkpoint: Checkpoint,
    windows: Windows,
    *,
    threads: int = 0,
    progress: Progress = silent,
) -> ChannelStatistics:
    """Stream text through the model and look at its channels wherever they are read.

    Raises
    ------
    DataError
        Activations on the text that are not finite.
    """
    size = checkpoint.config.n_channels
    total, metric, reading = np.zeros((size, size)), np.zeros((size, size)), np.zeros(size)
    for place, stream in places(checkpoint, windows, threads, progress):
        moments = Moments(size, gram=True, threads=threads)
        moments.update((stream * inverse_lengths(stream)).reshape(-1, size))
        second = moments.gram / moments.count
        if not np.isfinite(second).all():
            raise DataError(f"{place}: activations on the calibration text are not finite")
        weights = reading_metric(checkpoint, place)
        total += second
        metric += weights / _positive(np.vdot(weights, second))
        shares = second.diagonal() * weights.diagonal()
        reading += shares / _positive(shares.sum())
    return ChannelStatistics(total, metric, reading)


def best_basis(statistics: ChannelStatistics) -> Array:
    """Orthogonal directions, [channels, channels], of which the first few tell most of the stream.

    Principal components of the stream of all layers together, not for the stream's own sake but for
    what is read of it: from the first n of them all that is read can be regressed with the least
    error that n directions allow, whatever n.
    """
    second, metric = statistics.second_moment, statistics.metric
    metric = metric / _positive(np.vdot(metric, second))
    metric = metric + LENGTH_SHARE * np.eye(len(metric)) / _positive(np.trace(second))
    values, vectors = np.linalg.eigh(metric)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    _, components = np.linalg.eigh(root @ second @ root)
    basis, _ = np.linalg.qr(root @ components[:, ::-1])
    return np.asarray(basis)


def select(checkpoint: Checkpoint, statistics: ChannelStatistics, count: int) -> Recipe:
    """The recipe that keeps the ``count`` channels that most is read from.

    Raises
    ------
    BudgetError
        The model has fewer channels, or none are to stay.
    """
    check_count(checkpoint, count)
    best = np.argsort(-statistics.reading, kind="stable")[:count]
    kept = tuple(int(channel) for channel in np.sort(best))
    return dataclasses.replace(Recipe.identity(checkpoint), channels=kept)


def check_count(checkpoint: Checkpoint, count: int) -> None:
    """Raise BudgetError unless so many channels can stay."""
    size = checkpoint.config.n_channels
    if not 0 < count <= size:
        raise BudgetError(f"channels: expected 1 to {size}, found {count}")


def _positive(value: Any) -> float:
    """A divisor that is no zero where there is nothing to divide."""
    return max(float(value), float(np.finfo(np.float64).tiny))
