"""SparseGPT: zeros whose error the weights that come after them make up for.

Frantar and Alistarh 2023, "SparseGPT: Massive Language Models Can Be Accurately Pruned in
One-Shot", arXiv 2301.00774. The columns of a matrix are walked through in order. What a weight
costs is the error that its removal leaves when the columns to its right are adapted, and they are
adapted at once.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from slimformer.prune.sparsify import Kept

Floats = npt.NDArray[np.float32]
Array = npt.NDArray[np.float64]

BLOCK_COLUMNS = 128
"""Columns whose zeros are chosen together, by what the weights are when the walk comes to them."""

TRIANGLE = 64
"""Rows below which a triangular matrix is inverted like any other."""


def inverse_factor(system: Array) -> Floats:
    """U, upper triangular, with ``U' U`` the inverse of the matrix ``system``, [inputs, inputs].

    Row j of U, over its diagonal, is how the columns from j on make up for an error in column j
    when those before it are fixed.
    """
    # Of the reversed system's factor L, L L' = J A J, the inverse is that of A's in reverse order.
    inverse = _inverse(np.asarray(np.linalg.cholesky(system[::-1, ::-1]), np.float64))
    return np.ascontiguousarray(inverse[::-1, ::-1], dtype=np.float32)


def _inverse(lower: Array) -> Array:
    """Of a lower triangular matrix, by halves: a third of what solving for it would take."""
    size = len(lower)
    if size <= TRIANGLE:
        return np.tril(np.linalg.inv(lower))
    half = size // 2
    inverse = np.zeros_like(lower)
    inverse[:half, :half] = _inverse(lower[:half, :half])
    inverse[half:, half:] = _inverse(lower[half:, half:])
    below = inverse[half:, half:] @ lower[half:, :half]
    inverse[half:, :half] = -below @ inverse[:half, :half]
    return inverse


def sparsegpt(
    weight: Floats, factor: Floats, select: Callable[[Floats], Kept], width: int
) -> tuple[Floats, Kept]:
    """The matrix with its zeros, and where it keeps weights.

    Parameters
    ----------
    weight
        [outputs, inputs].
    factor
        ``inverse_factor`` of the inputs' damped second moments.
    select
        From the scores of some columns to what is kept of them.
    width
        Columns that ``select`` looks at together, or a multiple of that.
    """
    left = weight.copy()
    kept = np.zeros(weight.shape, np.bool_)
    inputs = weight.shape[1]
    for start in range(0, inputs, width):
        end = min(start + width, inputs)
        within = factor[start:end, start:end]
        scores = left[:, start:end] / within.diagonal()
        kept[:, start:end] = select(scores * scores)
        errors = np.empty((len(weight), end - start), np.float32)
        for column in range(start, end):
            at = column - start
            gone = np.where(kept[:, column], np.float32(0), left[:, column])
            errors[:, at] = gone / within[at, at]
            left[:, column] -= gone
            left[:, column + 1 : end] -= np.outer(errors[:, at], within[at, at + 1 :])
        left[:, end:] -= errors @ factor[start:end, end:]
    return left, kept
