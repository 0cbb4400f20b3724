"""What rotary pairs do: how another the residual stream is without each of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.config import AttentionConfig
from slimformer.prune.recipe import part_count
from slimformer.prune.stream import Hidden, chunks, inverse_lengths, sub_block_engine
from slimformer.prune.surgery import with_pairs

Array = npt.NDArray[np.float64]

TOKENS = 1024
"""The attention runs once for every pair, so on few tokens: of a mean over so many one digit is
sure, and pairs of a layer differ by tens."""


def pair_changes(
    checkpoint: Checkpoint, index: int, hidden: Hidden, *, threads: int = 0
) -> Array | None:
    """Squared length of what each pair changes in the stream, as a share of its energy, [pairs].

    Each pair is taken from all heads in turn, and the attention run without it: a sum of its
    products does not tell how much the softmax makes of them. ``None`` where no pair may go.

    Parameters
    ----------
    hidden
        The stream that enters the layer, [windows, tokens, channels], of which a part is used.
    """
    attention = checkpoint.config.layers[index].attention
    count = part_count(attention, "rotary_pairs") if isinstance(attention, AttentionConfig) else 0
    if count == 0:
        return None
    if count == 1:
        return np.zeros(1)  # there is no attention without it, and it never goes
    length = min(hidden.shape[1], TOKENS)
    entering = np.ascontiguousarray(hidden[: max(1, TOKENS // length), :length])
    whole = _after(checkpoint, index, entering, threads)
    scale = inverse_lengths(whole)
    changes = np.zeros(count)
    for pair in range(count):
        others = tuple(other for other in range(count) if other != pair)
        without = _after(with_pairs(checkpoint, index, others), index, entering, threads)
        lost = (without - whole) * scale
        changes[pair] = np.einsum("wtc,wtc->", lost, lost, dtype=np.float64) / scale.size
    return changes


def _after(checkpoint: Checkpoint, index: int, entering: Hidden, threads: int) -> Hidden:
    """The stream behind the attention."""
    engine = sub_block_engine(checkpoint, index, "attention", threads=threads)
    return np.concatenate([after for _, after, _ in chunks(engine, entering)])
