"""Where the residual stream is read: by each sub-block, and by the head."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.config import AttentionConfig, LinkConfig, RoutedFfnConfig
from slimformer.progress import Progress
from slimformer.prune.stream import Hidden, Windows, advance, embed, layer_engine

Array = npt.NDArray[np.float64]

HEAD = ""
"""The place after the last layer; others are called by the prefix of their tensors."""


def places(
    checkpoint: Checkpoint, windows: Windows, threads: int, progress: Progress
) -> Iterator[tuple[str, Hidden]]:
    """Every place that reads the stream, and the stream there, [windows, tokens, channels]."""
    hidden = embed(checkpoint, windows)
    layers = checkpoint.config.layers
    for index, layer in enumerate(layers):
        progress("read channels", index, len(layers))
        if _reads(layer.attention):
            yield f"layers.{index}.attention", hidden
        after = hidden.copy()
        between = advance(layer_engine(checkpoint, index, threads=threads), after)
        if _reads(layer.ffn):
            yield f"layers.{index}.ffn", hidden if layer.parallel else between
        hidden = after
    progress("read channels", len(layers), len(layers))
    yield HEAD, hidden


def _reads(sub_block: Any) -> bool:
    """Whether anything is there that reads the stream."""
    return sub_block is not None and not (isinstance(sub_block, LinkConfig) and not sub_block.reads)


def readers(checkpoint: Checkpoint, place: str) -> tuple[list[str], str]:
    """The matrices that read the stream at a place, and the name of the norm before them."""
    config = checkpoint.config
    if place == HEAD:
        return ["embedding.weight" if config.tied_head else "head.weight"], "final_norm"
    _, index, sub_block = place.split(".")
    part = getattr(config.layers[int(index)], sub_block)
    if isinstance(part, LinkConfig):
        names = ["link.down" if part.kind == "low_rank" else "link.weight"]
    elif isinstance(part, AttentionConfig):
        names = ["q.weight", "k.weight", "v.weight"]
    elif isinstance(part, RoutedFfnConfig):
        experts = [
            f"experts.{expert}.{one}.weight"
            for expert in range(len(part.experts))
            for one in ("gate", "up")
        ]
        names = ["router.weight", *experts]
    else:
        names = [f"{one}.weight" for one in part.neuron_parts]
    return [f"{place}.{name}" for name in names], f"{place}.norm"


def reading_weights(checkpoint: Checkpoint, place: str) -> Array:
    """What errors of each channel of the normalised stream weigh there, [channels].

    The sum of squares of all weights that multiply it, the gain of the norm before them included.
    """
    names, norm = readers(checkpoint, place)
    total = np.zeros(checkpoint.config.n_channels)
    for name in names:
        matrix = checkpoint.read_f32(name)
        total += np.square(matrix) if matrix.ndim == 1 else np.einsum("rc,rc->c", matrix, matrix)
    if f"{norm}.weight" in checkpoint.tensors:
        gains = checkpoint.read_f32(f"{norm}.weight") + np.float32(checkpoint.config.norm_offset)
        total *= np.square(gains)
    return total
