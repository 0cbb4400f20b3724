"""Moments against plain numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimformer.engine import Moments
from slimformer.errors import ConfigError, DataError

TOLERANCE = 2e-6
"""Of the largest entry: products are summed in float32 over blocks of 1,024 rows."""


ROUNDED_TOLERANCE = 1.01 * 2.0**-7
"""Of the product of absolute values: each of two factors is rounded by 2^-8 at most."""


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max())


@given(
    seed=st.integers(0, 1 << 31),
    width=st.integers(1, 140),
    target_width=st.integers(0, 40),
    blocks=st.lists(st.integers(0, 150), min_size=1, max_size=3),
)
def test_sums_and_products(seed: int, width: int, target_width: int, blocks: list[int]) -> None:
    rng = np.random.default_rng(seed)
    moments = Moments(width, gram=True, target_width=target_width, threads=2)
    xs, targets = [], []
    for rows in blocks:
        x = rng.standard_normal((rows, width)).astype(np.float32) + 1
        target = rng.standard_normal((rows, target_width)).astype(np.float32)
        moments.update(x, target if target_width else None)
        xs.append(x.astype(np.float64))
        targets.append(target.astype(np.float64))
    x64, target64 = np.concatenate(xs), np.concatenate(targets)
    assert moments.count == len(x64)
    np.testing.assert_allclose(moments.sum, x64.sum(axis=0), rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(moments.sum_squares, (x64**2).sum(axis=0), rtol=1e-12)
    assert close(moments.gram, x64.T @ x64)
    np.testing.assert_array_equal(moments.gram, moments.gram.T)
    if target_width:
        assert close(moments.cross, x64.T @ target64)


def test_many_rows_are_cut_into_blocks() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2500, 33)).astype(np.float32) + 3
    moments = Moments(33, threads=2)
    moments.update(x)
    x64 = x.astype(np.float64)
    assert close(moments.gram, x64.T @ x64)


@given(seed=st.integers(0, 1 << 31), width=st.integers(1, 140), rows=st.integers(1, 1100))
def test_products_of_bfloat16(seed: int, width: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    moments = Moments(width, target_width=5, products="bf16", threads=2)
    x = rng.standard_normal((rows, width)).astype(np.float32) + 1
    target = rng.standard_normal((rows, 5)).astype(np.float32) + 1
    moments.update(x, target)
    for found, right in ((moments.gram, x), (moments.cross, target)):
        x64, right64 = x.astype(np.float64), right.astype(np.float64)
        error = np.abs(found - x64.T @ right64)
        assert np.all(error <= ROUNDED_TOLERANCE * np.abs(x64).T @ np.abs(right64))
    np.testing.assert_array_equal(moments.gram, moments.gram.T)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((1100, 77)).astype(np.float32)
    target = rng.standard_normal((1100, 30)).astype(np.float32)
    found = []
    for threads in (1, 2, 3):
        moments = Moments(77, target_width=30, threads=threads)
        moments.update(x, target)
        found.append((moments.sum, moments.sum_squares, moments.gram, moments.cross))
    for other in found[1:]:
        for mine, expected in zip(other, found[0], strict=True):
            np.testing.assert_array_equal(mine, expected)


def test_nothing_yet() -> None:
    moments = Moments(3, target_width=2)
    assert moments.count == 0
    assert not moments.gram.any()
    assert moments.cross.shape == (3, 2)


def test_what_was_not_asked_for() -> None:
    moments = Moments(3, gram=False)
    x = np.ones((2, 3), dtype=np.float32)
    with pytest.raises(DataError, match="without targets"):
        moments.update(x, x)
    moments.update(x)
    with pytest.raises(DataError, match="without gram"):
        _ = moments.gram
    with pytest.raises(DataError, match="without targets"):
        _ = moments.cross
    with pytest.raises(DataError, match="got none"):
        Moments(3, target_width=1).update(x)


def test_arguments_that_do_not_fit() -> None:
    moments = Moments(3, target_width=2)
    x = np.ones((2, 3), dtype=np.float32)
    wrong: tuple[Any, ...] = (x[:, :2], x[0], x.astype(np.float64), x[:, ::-1])
    for bad in wrong:
        with pytest.raises(DataError, match="x:"):
            moments.update(bad, np.ones((2, 2), dtype=np.float32))
    with pytest.raises(DataError, match="2 rows"):
        moments.update(x, np.ones((3, 2), dtype=np.float32))
    for width in (0, -1, 1 << 40):
        with pytest.raises(ConfigError):
            Moments(width)
    with pytest.raises(ConfigError, match="products"):
        Moments(3, products="f8")
