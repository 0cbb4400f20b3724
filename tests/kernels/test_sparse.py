"""Matrices without their zeros: the same results, bit for bit, from fewer bytes."""

from __future__ import annotations

from typing import Any, Literal, cast

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from kernels.memory import place
from reference.tiers import BF16_DOTS
from slimformer import _kernels as kernels

F32 = npt.NDArray[np.float32]
Sparse = Literal["bf16", "int8"]

SPARSE: tuple[Sparse, ...] = ("bf16", "int8")
"""Types that have a sparse form."""

SHAPES = [  # rows, inputs, outputs
    (1, 1, 1),
    (1, 576, 33),
    (2, 1021, 64),
    (5, 257, 47),
    (12, 1536, 32),
    (13, 333, 37),
    (97, 37, 333),
]

SHARES = [0.0, 0.5, 0.97, 1.0]
"""Shares of weights that are zero."""


@pytest.fixture(params=SPARSE)
def sparse_weights(request: pytest.FixtureRequest) -> Sparse:
    return cast(Sparse, request.param)


def weights_with_zeros(
    rng: np.random.Generator, outputs: int, inputs: int, share: float
) -> tuple[F32, npt.NDArray[np.bool_]]:
    """Weights [outputs, inputs] and which of them are zero, some of either sign."""
    w = rng.standard_normal((outputs, inputs), dtype=np.float32)
    zero = rng.random((outputs, inputs)) < share
    return np.where(zero, np.copysign(np.float32(0), w), w), zero


def both(tier: str, weights: Sparse, w: F32, **options: Any) -> tuple[kernels.Matrix, ...]:
    """The same weights without their zeros and with them."""
    return tuple(
        kernels.Matrix(tier, weights, w, form=form, **options)
        for form in cast(tuple[Literal["sparse", "expanded"], ...], ("sparse", "expanded"))
    )


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_both_forms_give_the_same_bits(
    tier: str,
    sparse_weights: Sparse,
    placement: str,
    shape: tuple[int, int, int],
    share: float,
    rng: np.random.Generator,
) -> None:
    rows, inputs, outputs = shape
    w, _ = weights_with_zeros(rng, outputs, inputs, share)
    x = place(rng.standard_normal((rows, inputs), dtype=np.float32), placement)
    sparse, dense = both(tier, sparse_weights, w)
    assert sparse.sparse
    assert not dense.sparse
    results = []
    for packed in (sparse, dense):
        y = place(np.full((rows, outputs), np.nan, np.float32), placement)
        packed.multiply(x, y)
        assert np.isfinite(y).all()
        more = place(y + np.float32(0.25), placement)
        packed.multiply(x, more, accumulate=True)
        results.append((y, more))
    for from_sparse, from_dense in zip(*results, strict=True):
        np.testing.assert_array_equal(from_sparse, from_dense)


def test_any_number_of_rows_and_threads(
    tier: str, sparse_weights: Sparse, rng: np.random.Generator
) -> None:
    """From one row to more than a tile has, and to several blocks of them."""
    w, _ = weights_with_zeros(rng, 69, 577, 0.5)
    bias = rng.standard_normal(69, dtype=np.float32)
    x = rng.standard_normal((411, 577), dtype=np.float32)
    _, dense = both(tier, sparse_weights, w)
    expected = np.empty((411, 69), np.float32)
    dense.multiply(x, expected)
    for threads in (1, 3):
        packed, _ = both(tier, sparse_weights, w, threads=threads)
        for rows in (*range(1, 15), 200, 411):
            y = np.empty((rows, 69), np.float32)
            packed.linear(x[:rows], y, bias)
            np.testing.assert_array_equal(y, expected[:rows] + bias)


def test_what_is_not_finite_meets_zeros_too(tier: str, sparse_weights: Sparse) -> None:
    w = np.zeros((40, 70), np.float32)
    w[3, 5] = 2.0
    x = np.ones((3, 70), np.float32)
    x[1, 0] = np.inf
    x[2, 69] = np.nan
    sparse, dense = both(tier, sparse_weights, w)
    y, expected = np.empty((3, 40), np.float32), np.empty((3, 40), np.float32)
    sparse.multiply(x, y)
    dense.multiply(x, expected)
    np.testing.assert_array_equal(y, expected)
    assert np.isnan(y[1:]).all()


def test_rows_come_back(tier: str, sparse_weights: Sparse, rng: np.random.Generator) -> None:
    w, zero = weights_with_zeros(rng, 37, 333, 0.6)
    sparse, dense = both(tier, sparse_weights, w, threads=2)
    for index in range(37):
        row, expected = np.empty(333, np.float32), np.empty(333, np.float32)
        sparse.unpack_row(index, row)
        dense.unpack_row(index, expected)
        np.testing.assert_array_equal(row, expected)
        assert (row[zero[index]] == 0).all()
        if sparse_weights == "bf16":
            kept = w[index].astype(ml_dtypes.bfloat16).astype(np.float32)
            np.testing.assert_array_equal(row, kept)


@pytest.mark.parametrize("source", ["f32", "bf16", "f16"])
def test_zeros_are_found_in_every_source(tier: str, source: str, rng: np.random.Generator) -> None:
    values, _ = weights_with_zeros(rng, 64, 128, 0.75)
    stored: npt.NDArray[Any] = values
    if source == "bf16":
        stored = values.astype(ml_dtypes.bfloat16).view(np.uint16)
    elif source == "f16":
        stored = values.astype(np.float16).view(np.uint16)
    packed = kernels.Matrix(tier, "bf16", stored, source=cast(Literal["f32"], source))
    assert packed.sparse == pays(tier, "bf16")


def pays(tier: str, weights: str) -> bool:
    """Whether the tier's sparse form is the faster one when most weights are zero."""
    return tier in BF16_DOTS if weights == "int8" else tier != "scalar"


def test_sparse_is_chosen_where_it_pays(
    tier: str, sparse_weights: Sparse, rng: np.random.Generator
) -> None:
    gains = pays(tier, sparse_weights)
    for share, expected in ((0.0, False), (0.1, False), (0.7, gains), (1.0, gains)):
        w, _ = weights_with_zeros(rng, 192, 576, share)
        dense = kernels.Matrix(tier, sparse_weights, w, form="dense")
        packed = kernels.Matrix(tier, sparse_weights, w)
        assert packed.sparse == expected
        assert (packed.bytes < dense.bytes) == expected


def test_a_matrix_too_small_to_gain_stays_dense(tier: str, sparse_weights: Sparse) -> None:
    w = np.zeros((1, 1), np.float32)
    assert not kernels.Matrix(tier, sparse_weights, w, form="smaller").sparse


def test_bytes(tier: str, sparse_weights: Sparse, rng: np.random.Generator) -> None:
    """Half of the weights zero: 0.6 of the bytes in bfloat16, 0.65 in int8, to a per cent."""
    w, _ = weights_with_zeros(rng, 576, 1536, 0.5)
    dense = kernels.Matrix(tier, sparse_weights, w, form="dense")
    sparse = kernels.Matrix(tier, sparse_weights, w, form="sparse")
    assert sparse.bytes <= {"bf16": 0.6, "int8": 0.65}[sparse_weights] * dense.bytes


@pytest.mark.parametrize("weights", ["f32", "int4"])
def test_other_types_have_no_sparse_form(tier: str, weights: Literal["f32", "int4"]) -> None:
    w = np.zeros((64, 64), np.float32)
    assert not kernels.Matrix(tier, weights, w).sparse
    with pytest.raises(kernels.KernelError, match="no sparse form"):
        kernels.Matrix(tier, weights, w, form="sparse")
