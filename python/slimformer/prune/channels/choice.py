"""Which channels of the residual stream matter, and in which basis few of them matter most."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.config import AttentionConfig, LinkConfig, RoutedFfnConfig
from slimformer.engine import Moments
from slimformer.errors import BudgetError, DataError
from slimformer.progress import Progress, silent
from slimformer.prune.recipe import Recipe
from slimformer.prune.stream import Hidden, Windows, chunks, embed, inverse_lengths, layer_engine

Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class ChannelStatistics:
    """What the sub-blocks and the head find in the stream.

    second_moment: of the stream divided by its length, mean over tokens, sum over all places where
    it is read, [channels, channels]. reading: what each channel contributes to what is read, as
    a share, sum over the places, [channels].
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
    for place, stream in _places(checkpoint, windows, threads, progress):
        moments = Moments(size, gram=True, threads=threads)
        moments.update((stream * inverse_lengths(stream)).reshape(-1, size))
        second = moments.gram / moments.count
        if not np.isfinite(second).all():
            raise DataError(f"{place}: activations on the calibration text are not finite")
        total += second
        read = second.diagonal() * _squares_of_readers(checkpoint, place)
        reading += read / max(float(read.sum()), np.finfo(float).tiny)
    return ChannelStatistics(total, reading)


def principal_basis(statistics: ChannelStatistics) -> Array:
    """The directions of the stream by how much of it they are, most first, [channels, channels].

    Principal components of the stream of all layers together: whatever number of channels stays,
    no other choice as large leaves less of the stream behind.
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


def _places(
    checkpoint: Checkpoint, windows: Windows, threads: int, progress: Progress
) -> Iterator[tuple[str, Hidden]]:
    """Every place that reads the stream, by the prefix of its tensors, and the stream there."""
    hidden = embed(checkpoint, windows)
    layers = checkpoint.config.layers
    for index, layer in enumerate(layers):
        progress("measure channels", index, len(layers))
        if layer.attention is not None:
            yield f"layers.{index}.attention", hidden
        between = np.empty_like(hidden)
        after = np.empty_like(hidden)
        engine = layer_engine(checkpoint, index, threads=threads)
        for rows, output, captured in chunks(engine, hidden, capture=["ffn_input"]):
            between[rows], after[rows] = captured["ffn_input"], output
        if layer.ffn is not None:
            yield f"layers.{index}.ffn", hidden if layer.parallel else between
        hidden = after
    progress("measure channels", len(layers), len(layers))
    yield "", hidden


def _squares_of_readers(checkpoint: Checkpoint, place: str) -> Array:
    """Squares of all weights that multiply each channel there, summed, [channels]."""
    names, norm = readers(checkpoint, place)
    total = np.zeros(checkpoint.config.n_channels)
    for name in names:
        matrix = checkpoint.read_f32(name)
        total += np.square(matrix) if matrix.ndim == 1 else np.einsum("oc,oc->c", matrix, matrix)
    if norm in checkpoint.tensors:
        gains = checkpoint.read_f32(norm) + np.float32(checkpoint.config.norm_offset)
        total *= np.square(gains)
    return total


def readers(checkpoint: Checkpoint, place: str) -> tuple[list[str], str]:
    """The matrices that read the stream at a place, and the norm before them."""
    config = checkpoint.config
    if not place:
        tied = config.tied_head
        return ["embedding.weight" if tied else "head.weight"], "final_norm.weight"
    _, index, sub_block = place.split(".")
    part = getattr(config.layers[int(index)], sub_block)
    if isinstance(part, LinkConfig):
        names = ["link.down" if part.kind == "low_rank" else "link.weight"]
    elif isinstance(part, AttentionConfig):
        names = ["q.weight", "k.weight", "v.weight"]
    elif isinstance(part, RoutedFfnConfig):
        experts = [
            f"experts.{index}.{one}.weight"
            for index in range(len(part.experts))
            for one in ("gate", "up")
        ]
        names = ["router.weight", *experts]
    else:
        names = [f"{one}.weight" for one in part.neuron_parts]
    return [f"{place}.{name}" for name in names], f"{place}.norm.weight"
