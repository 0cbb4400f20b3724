"""Matrix products: packing, the kernel of each tier, and the driver that cuts the work."""

from __future__ import annotations

from typing import Any, Literal, cast

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from kernels.memory import place
from reference.quantised import (
    INT4_GROUP,
    INT8_GROUP,
    int4_inputs,
    int8_inputs,
    int8_weights,
    rotated,
)
from reference.tiers import BF16_DOTS
from slimformer import _kernels as kernels

F32 = npt.NDArray[np.float32]
Weights = Literal["f32", "bf16", "int8", "int4"]

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


def rounded(w: F32, tier: str, weights: str) -> F32:
    """What is left of weights [outputs, inputs] once packed."""
    if weights == "f32":
        return w
    if weights == "bf16":
        return w.astype(ml_dtypes.bfloat16).astype(np.float32)
    if weights == "int8":
        return rotated(int8_weights(w).astype(np.float32))
    return unpacked(matrix(tier, weights, w), w.shape)


def unpacked(packed: kernels.Matrix, shape: tuple[int, ...]) -> F32:
    rows = np.empty(shape, np.float32)
    for index, row in enumerate(rows):
        packed.unpack_row(index, row)
    return rows


def operands(x: F32, w: F32, tier: str, weights: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The inputs and weights that the kernel multiplies, and what w's roundings are relative to.

    int4 weights q * scale + minimum are summed as two products, either of which is at most twice
    as large as the largest weight of its group would make it.
    """
    if weights == "int4":
        kept = rounded(w, tier, weights).astype(np.float64)
        return int4_inputs(x), kept, 4 * largest_of_groups(kept, INT4_GROUP)
    if weights == "int8":
        return int8_inputs(x), int8_weights(w), np.abs(int8_weights(w))
    if tier in BF16_DOTS and weights == "bf16":  # its dot products take bfloat16 inputs
        x = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    kept = rounded(w, tier, weights).astype(np.float64)
    return x.astype(np.float64), kept, np.abs(kept)


def reference(x: F32, w: F32, tier: str, weights: str) -> tuple[np.ndarray, np.ndarray]:
    """The product of what the kernel reads in float64, and how far off it may be.

    A sum of k products rounds k times, each time by EPS of a partial sum, with random signs: so
    sqrt(k) EPS of the sum of the magnitudes, and a few more for small k. Products of whole numbers
    add up exactly in their group, which then rounds two or three times.
    """
    x64, w64, magnitudes = operands(x, w, tier, weights)
    bound = (4 + np.sqrt(x.shape[1])) * EPS * (np.abs(x64) @ magnitudes.T)
    if tier == "avx512_bf16" and weights == "int4":
        # Minima, at most twice the largest weight, multiply sums that are rounded to bfloat16.
        sums = np.add.reduceat(x64, np.arange(0, x.shape[1], INT4_GROUP), axis=1)
        bound += 2.0**-9 * (np.abs(sums) @ (2 * largest_of_groups(w64, INT4_GROUP)).T[::INT4_GROUP])
    return x64 @ w64.T, bound


def largest_of_groups(w: np.ndarray, size: int) -> np.ndarray:
    """For every weight [outputs, inputs] the largest magnitude in its group."""
    outputs, inputs = w.shape
    padded = np.zeros((outputs, -(-inputs // size) * size))
    padded[:, :inputs] = np.abs(w)
    largest = padded.reshape(outputs, -1, size).max(axis=2)
    return np.repeat(largest, size, axis=1)[:, :inputs]


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
    x = rng.standard_normal((67, 1021), dtype=np.float32)
    packed = matrix(tier, weights, w)
    together = np.empty((67, 37), np.float32)
    packed.multiply(x, together)
    for height in (1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 16, 17, 31, 32, 33, 49, 64):
        apart = np.empty((height, 37), np.float32)
        packed.multiply(x[:height], apart)
        np.testing.assert_array_equal(apart, together[:height])


def test_rows_below_the_normal_numbers_do_not_depend_on_their_neighbours(
    tier: str, rng: np.random.Generator
) -> None:
    """Whether such numbers count as zero is the kernel's to say, but for any number of rows."""
    w = rng.standard_normal((37, 157), dtype=np.float32)
    x = rng.standard_normal((31, 157), dtype=np.float32)
    w[:, ::3] *= np.float32(1e30)
    x[:, ::3] *= np.float32(2e-39)
    w[:, 1::3] *= np.float32(3e-39)
    packed = matrix(tier, "bf16", w)
    together = np.empty((31, 37), np.float32)
    packed.multiply(x, together)
    for height in (1, 4, 5, 16, 17):
        apart = np.empty((height, 37), np.float32)
        packed.multiply(x[:height], apart)
        np.testing.assert_array_equal(apart, together[:height])
    assert np.float32(2e-39) * np.float32(0.5) > 0, "the thread rounds as before"


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
        values = values.astype(ml_dtypes.bfloat16).astype(np.float32)
        stored = values.astype(ml_dtypes.bfloat16).view(np.uint16)
    packed = matrix(tier, weights, place(stored, placement), source=source, threads=2)
    row = place(np.empty(shape[1], np.float32), placement)
    for index, expected in enumerate(rounded(values, tier, weights)):
        packed.unpack_row(index, row)
        np.testing.assert_array_equal(row, expected)


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
    w = np.zeros((2 * width + 1, INT8_GROUP), np.float32)
    packed = matrix(tier, weights, w, form="dense")
    of_group = {
        "f32": 4 * INT8_GROUP,
        "bf16": 2 * INT8_GROUP,
        "int8": INT8_GROUP + 2,
        "int4": INT8_GROUP // INT4_GROUP * (INT4_GROUP // 2 + 4),
    }
    of_panel = width * of_group[weights]
    assert packed.bytes == 3 * (-(-of_panel // 64) * 64)


def test_a_short_last_group_takes_no_more_than_it_holds(tier: str) -> None:
    width, _ = kernels.geometry(tier, "int8")
    packed = matrix(tier, "int8", np.ones((width, INT8_GROUP + 13), np.float32))
    assert packed.bytes <= width * (INT8_GROUP + 16 + 2 * 2) + 63


def test_not_a_number_stays_in_its_row_or_column(tier: str, weights: str) -> None:
    x = np.ones((9, 40), np.float32)
    w = np.ones((19, 40), np.float32)
    clean, bound = reference(x, w, tier, weights)
    x[4, 39] = np.nan
    x[5, 0] = np.inf
    w[18, 0] = np.inf
    y = np.empty((9, 19), np.float32)
    matrix(tier, weights, w).multiply(x, y)
    touched = np.zeros((9, 19), bool)
    touched[4] = touched[5] = touched[:, 18] = True
    np.testing.assert_array_equal(np.isfinite(y), ~touched)
    assert (np.abs(y - clean) <= bound)[~touched].all()


@pytest.mark.parametrize("shift", [0, 1, 2])
def test_int8_of_values_far_apart(tier: str, shift: int, rng: np.random.Generator) -> None:
    """Groups of zeros, of denormals and of huge numbers, beside ordinary ones."""
    sizes = np.array([0, 1e-45, 1e-41, 1e-38, 1e-20, 1, 1e20, 1e34], np.float32)
    w, x = (
        (rng.uniform(-1, 1, (rows, len(order), INT8_GROUP)) * order[:, None])
        .astype(np.float32)
        .reshape(rows, -1)
        for rows, order in ((37, sizes), (29, np.roll(sizes[::-1], shift)))
    )
    y = np.empty((29, 37), np.float32)
    expected, bound = reference(x, w, tier, "int8")
    matrix(tier, "int8", w).multiply(x, y)
    smallest = 2.0**-149  # a product that is less than normal rounds to whole ones of these
    assert (np.abs(y - expected) <= bound + 16 * smallest).all()


def test_int4_keeps_what_has_sixteen_values(tier: str, rng: np.random.Generator) -> None:
    """Weights that were on such lines already come back as they were."""
    scale = rng.choice([0.5, 0.0625, 3.0], (50, 1))
    q = rng.integers(0, 16, (50, 29))
    q[:, 0], q[:, 1] = 0, 15
    w = (scale * (q + rng.integers(-20, 20, (50, 1)))).astype(np.float32)
    kept = unpacked(matrix(tier, "int4", w), w.shape)
    np.testing.assert_allclose(kept, w, rtol=0, atol=1e-6 * float(np.abs(w).max()))


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_int4_loses_less_than_the_range_would(
    tier: str, size: float, rng: np.random.Generator
) -> None:
    w = (rng.standard_normal((33, 10 * INT4_GROUP)) * size).astype(np.float32)
    kept = unpacked(matrix(tier, "int4", w), w.shape)
    found, groups = (values.astype(np.float64).reshape(-1, INT4_GROUP) for values in (kept, w))
    low = groups.min(axis=1, keepdims=True)
    scale = (groups.max(axis=1, keepdims=True) - low) / 15
    plain = np.rint((groups - low) / scale) * scale + low
    lost = ((found - groups) ** 2).sum(axis=1)
    by_range = ((plain - groups) ** 2).sum(axis=1)
    assert lost.sum() < 0.93 * by_range.sum()
    assert (lost < 1.05 * by_range).mean() > 0.99  # scale and minimum are rounded to bfloat16


@pytest.mark.parametrize("value", [0.0, 1e-45, -1e-38, 0.3, -3e38])
def test_int4_of_one_value(tier: str, value: float) -> None:
    w = np.full((3, 45), value, np.float32)
    kept = unpacked(matrix(tier, "int4", w), w.shape)
    np.testing.assert_array_equal(kept, w.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_an_empty_matrix_is_refused(tier: str) -> None:
    with pytest.raises(kernels.KernelError, match="0 x 5"):
        kernels.Matrix(tier, "f32", np.zeros((0, 5), np.float32))
