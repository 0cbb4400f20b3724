"""Matrix products: packing, the kernel of each tier, and the driver that cuts the work."""

from __future__ import annotations

from typing import Any, Literal, cast

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from kernels.memory import place
from slimformer import _kernels as kernels

F32 = npt.NDArray[np.float32]
Weights = Literal["f32", "bf16"]

EPS = 2.0**-24
"""Half a unit in the last place of float32: the error of one rounding."""

SHAPES = [  # rows, inputs, outputs
    (1, 1, 1),
    (1, 576, 33),
    (2, 513, 16),
    (3, 1021, 7),
    (5, 257, 47),
    (7, 333, 37),
    (13, 1536, 64),
    (29, 7, 333),
    (97, 37, 1021),
]


def matrix(tier: str, weights: str, w: npt.NDArray[Any], **options: Any) -> kernels.Matrix:
    return kernels.Matrix(tier, cast(Weights, weights), w, **options)


def rounded(w: F32, weights: str) -> F32:
    """What is left of weights once packed."""
    return w if weights == "f32" else w.astype(ml_dtypes.bfloat16).astype(np.float32)


def reference(x: F32, w: F32, tier: str, weights: str) -> tuple[np.ndarray, np.ndarray]:
    """The product of what the kernel reads in float64, and how far off it may be.

    A sum of k products rounds k times, each time by EPS of a partial sum, with random signs: so
    sqrt(k) EPS of the sum of the magnitudes, and a few more for small k.
    """
    if tier == "avx512_bf16" and weights == "bf16":  # its dot products take bfloat16 inputs
        x = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    w = rounded(w, weights)
    x64, w64 = x.astype(np.float64), w.astype(np.float64)
    bound = (4 + np.sqrt(x.shape[1])) * EPS * (np.abs(x64) @ np.abs(w64).T)
    return x64 @ w64.T, bound


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_product(
    tier: str, weights: str, placement: str, shape: tuple[int, int, int], rng: np.random.Generator
) -> None:
    rows, inputs, outputs = shape
    x = place(rng.standard_normal((rows, inputs), dtype=np.float32), placement)
    w = place(rng.standard_normal((outputs, inputs), dtype=np.float32), placement)
    y = place(np.full((rows, outputs), np.nan, np.float32), placement)
    packed = matrix(tier, weights, w)
    packed.multiply(x, y)
    expected, bound = reference(x, w, tier, weights)
    assert (np.abs(y - expected) <= bound).all()

    before = rng.standard_normal((rows, outputs), dtype=np.float32)
    y[...] = before
    packed.multiply(x, y, accumulate=True)
    bound += 8 * EPS * np.abs(before)  # every block of inputs rounds the growing y once
    assert (np.abs(y - (expected + before)) <= bound).all()


def test_rows_do_not_depend_on_their_neighbours(
    tier: str, weights: str, rng: np.random.Generator
) -> None:
    """Prefill, decode and batches of any size give a row the same bits."""
    w = rng.standard_normal((37, 1021), dtype=np.float32)
    x = rng.standard_normal((31, 1021), dtype=np.float32)
    packed = matrix(tier, weights, w)
    together = np.empty((31, 37), np.float32)
    packed.multiply(x, together)
    for height in (1, 2, 3, 4, 5, 6, 7, 11, 12, 13):
        apart = np.empty((height, 37), np.float32)
        packed.multiply(x[:height], apart)
        np.testing.assert_array_equal(apart, together[:height])


def test_driver_gives_the_same_bits_for_any_threads(
    tier: str, weights: str, rng: np.random.Generator
) -> None:
    w = rng.standard_normal((333, 577), dtype=np.float32)
    bias = rng.standard_normal(333, dtype=np.float32)
    for rows in (1, 3, 200, 511):
        x = rng.standard_normal((rows, 577), dtype=np.float32)
        one = np.empty((rows, 333), np.float32)
        matrix(tier, weights, w).multiply(x, one)
        for threads in (1, 2, 5):
            packed = matrix(tier, weights, w, threads=threads)
            y = np.empty((rows, 333), np.float32)
            packed.linear(x, y)
            np.testing.assert_array_equal(y, one)
            packed.linear(x, y, bias)
            np.testing.assert_array_equal(y, one + bias)


def test_driver_accumulates_with_a_bias(tier: str, weights: str, rng: np.random.Generator) -> None:
    w = rng.standard_normal((21, 64), dtype=np.float32)
    x = rng.standard_normal((9, 64), dtype=np.float32)
    bias = rng.standard_normal(21, dtype=np.float32)
    y = rng.standard_normal((9, 21), dtype=np.float32)
    expected, bound = reference(x, w, tier, weights)
    expected = expected + y + bias
    bound = bound + 4 * EPS * (np.abs(y) + np.abs(bias))
    matrix(tier, weights, w, threads=2).linear(x, y, bias, accumulate=True)
    assert (np.abs(y - expected) <= bound).all()


@pytest.mark.parametrize("source", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("shape", [(1, 1), (16, 64), (37, 333), (33, 1021)], ids=str)
def test_packing_keeps_the_values(
    tier: str,
    weights: str,
    placement: str,
    source: str,
    shape: tuple[int, int],
    rng: np.random.Generator,
) -> None:
    values = rng.standard_normal(shape, dtype=np.float32)
    stored: npt.NDArray[Any] = values
    if source == "f16":
        values = values.astype(np.float16).astype(np.float32)
        stored = values.astype(np.float16).view(np.uint16)
    elif source == "bf16":
        values = rounded(values, "bf16")
        stored = values.astype(ml_dtypes.bfloat16).view(np.uint16)
    packed = matrix(tier, weights, place(stored, placement), source=source, threads=2)
    row = place(np.empty(shape[1], np.float32), placement)
    for index in range(shape[0]):
        packed.unpack_row(index, row)
        np.testing.assert_array_equal(row, rounded(values[index], weights))


def test_every_half_precision_value_is_read(tier: str) -> None:
    stored = np.arange(1 << 16, dtype=np.uint16).reshape(64, 1024)
    packed = kernels.Matrix(tier, "f32", stored, source="f16")
    rows = np.empty((64, 1024), np.float32)
    for index in range(64):
        packed.unpack_row(index, rows[index])
    with np.errstate(invalid="ignore"):  # signalling NaN
        np.testing.assert_array_equal(rows, stored.view(np.float16).astype(np.float32))


def test_packed_bytes(tier: str, weights: str) -> None:
    width, _ = kernels.geometry(tier, cast(Weights, weights))
    packed = matrix(tier, weights, np.zeros((2 * width + 1, 64), np.float32))
    assert packed.bytes == 3 * width * 64 * (4 if weights == "f32" else 2)


def test_not_a_number_stays_in_its_row_or_column(tier: str, weights: str) -> None:
    x = np.ones((9, 40), np.float32)
    w = np.ones((19, 40), np.float32)
    x[4, 39] = np.nan
    w[18, 0] = np.inf
    y = np.empty((9, 19), np.float32)
    matrix(tier, weights, w).multiply(x, y)
    expected = np.full((9, 19), 40, np.float32)
    expected[:, 18] = np.inf
    expected[4] = np.nan
    np.testing.assert_array_equal(y, expected)


def test_an_empty_matrix_is_refused(tier: str) -> None:
    with pytest.raises(kernels.KernelError, match="0 x 5"):
        kernels.Matrix(tier, "f32", np.zeros((0, 5), np.float32))
