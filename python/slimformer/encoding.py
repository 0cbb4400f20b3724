"""Texts as vectors: pooling what an encoder makes of their tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from slimformer.errors import DataError

Floats = npt.NDArray[np.float32]
Pooling = Literal["mean", "cls", "max"]

BATCH_TOKENS = 2048
"""Tokens of texts that are encoded together: enough to keep every pass full."""


def encode(
    states: Callable[[list[int], list[int]], Floats],
    texts: Sequence[Sequence[int]],
    channels: int,
    pooling: Pooling,
) -> Floats:
    """One vector a text, [texts, channels], batched by length.

    Parameters
    ----------
    states:
        Gives hidden states [tokens, channels] of the tokens of several texts and their lengths.
    texts:
        Token ids of each.

    Raises
    ------
    DataError
        A text without any token.
    """
    empty = [index for index, tokens in enumerate(texts) if not tokens]
    if empty:
        raise DataError(f"text {empty[0]}: expected at least one token, found none")
    vectors = np.empty((len(texts), channels), np.float32)
    for batch in batches([len(tokens) for tokens in texts]):
        lengths = [len(texts[index]) for index in batch]
        tokens = [token for index in batch for token in texts[index]]
        vectors[batch] = pool(states(tokens, lengths), lengths, pooling)
    return vectors


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of texts to encode together, those of like length beside each other."""
    batch: list[int] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and tokens + lengths[index] > BATCH_TOKENS:
            yield batch
            batch, tokens = [], 0
        batch.append(index)
        tokens += lengths[index]
    if batch:
        yield batch


def pool(hidden: Floats, lengths: Sequence[int], pooling: Pooling) -> Floats:
    """One vector a text, [texts, channels], of hidden [tokens of all texts, channels]."""
    starts = np.cumsum([0, *lengths])[:-1]
    if pooling == "cls":
        return np.asarray(hidden[starts])
    if pooling == "max":
        return np.asarray(np.maximum.reduceat(hidden, starts, axis=0))
    sums = np.add.reduceat(hidden, starts, axis=0, dtype=np.float32)
    return np.asarray(sums / np.asarray(lengths, np.float32)[:, None])


def to_length_one(vectors: Floats) -> Floats:
    """Vectors [texts, channels] divided by their lengths; one of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Floats = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return scaled
