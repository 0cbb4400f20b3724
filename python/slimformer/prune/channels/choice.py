"""Which channels of the residual stream matter, and in which basis few of them matter most."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.engine import Moments
from slimformer.errors import BudgetError
from slimformer.progress import Progress, silent
from slimformer.prune.channels.reading import places, reading_weights
from slimformer.prune.evidence import check_finite
from slimformer.prune.recipe import Recipe
from slimformer.prune.stream import Windows, inverse_lengths

Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class ChannelStatistics:
    """What the sub-blocks and the head find in the stream, summed over all these places.

    second_moment: of the stream divided by its length, mean over tokens, [channels, channels].
    reading: what each channel contributes to what is read, as a share, [channels].
    """

    second_moment: Array
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
    total, reading = np.zeros((size, size)), np.zeros(size)
    for place, stream in places(checkpoint, windows, threads, progress):
        moments = Moments(size, gram=True, threads=threads)
        moments.update((stream * inverse_lengths(stream)).reshape(-1, size))
        second = moments.gram / moments.count
        check_finite(place, second)
        total += second
        shares = second.diagonal() * reading_weights(checkpoint, place)
        reading += shares / max(float(shares.sum()), float(np.finfo(np.float64).tiny))
    return ChannelStatistics(total, reading)


def principal_basis(statistics: ChannelStatistics) -> Array:
    """The directions of the stream by how much of it they are, most first, [channels, channels].

    Principal components of the stream of all layers together: whatever number of them stays, no
    other choice as large leaves less of the stream behind. Directions that are best for what is
    read by weight leave more of its length behind, and are measured to be worse.
    """
    _, vectors = np.linalg.eigh(statistics.second_moment)
    return np.ascontiguousarray(vectors[:, ::-1])


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
