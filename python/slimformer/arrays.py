"""Arrays as the core takes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from slimformer.errors import DataError, TokenError

Tokens = Sequence[int] | npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.float32]

MAX_TOKEN_ID = np.iinfo(np.int32).max

BATCH_TOKENS = 4096
"""Sequences of so many tokens are scored together: enough to keep every pass full, and the keys
and values of no more have to be kept."""


def as_core_array(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same values as the core takes them: bfloat16 as its bits, no gaps, aligned."""
    values = np.require(values, requirements=["C", "A"])
    return values.view(np.uint16) if values.dtype == ml_dtypes.bfloat16 else values


def as_tokens(tokens: Tokens) -> npt.NDArray[np.int32]:
    """Token ids as int32 [n_tokens].

    Raises
    ------
    DataError, TokenError
        They are no list of integers, or no ids.
    """
    ids = np.asarray(tokens)
    if ids.size == 0:
        return np.empty(0, dtype=np.int32)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise DataError(
            f"tokens: expected a list of integers, found shape {ids.shape} of {ids.dtype}"
        )
    if ids.min() < 0 or ids.max() > MAX_TOKEN_ID:
        raise TokenError(f"token id: expected 0 or more, found {ids.min()} to {ids.max()}")
    return ids.astype(np.int32)


def batches(sequences: list[npt.NDArray[np.int32]]) -> Iterator[list[npt.NDArray[np.int32]]]:
    """Sequences in their order, as few in a batch as make it full."""
    batch: list[npt.NDArray[np.int32]] = []
    for sequence in sequences:
        batch.append(sequence)
        if sum(map(len, batch)) >= BATCH_TOKENS:
            yield batch
            batch = []
    if batch:
        yield batch
