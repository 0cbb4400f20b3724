"""Kernels over single rows: norms, rotation, activation, sums, conversions."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from kernels.memory import place
from slimformer import _kernels as kernels

EPS = 2.0**-24
"""Half a unit in the last place of float32: the error of one rounding."""

SIZES = [1, 7, 8, 9, 37, 64, 333, 1021]


@pytest.mark.parametrize("n", SIZES)
def test_rms_norm(tier: str, placement: str, n: int, rng: np.random.Generator) -> None:
    x = place(3 * rng.standard_normal(n, dtype=np.float32), placement)
    weight = place(rng.standard_normal(n, dtype=np.float32), placement)
    y = place(np.full(n, np.nan, np.float32), placement)
    divisor = n + 3  # the divisor outlives pruned channels
    kernels.rms_norm(tier, x, weight, 1e-5, divisor, y)
    x64 = x.astype(np.float64)
    expected = x64 / np.sqrt((x64**2).sum() / divisor + 1e-5) * weight
    # The sum is of positive terms: n roundings of random sign, halved by the square root. Six
    # more for the division, the root, its inverse and the products.
    np.testing.assert_allclose(y, expected, rtol=(6 + np.sqrt(n)) * EPS)
    kernels.rms_norm(tier, x, weight, 1e-5, divisor, x)
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("pairs", SIZES)
def test_rope(tier: str, placement: str, pairs: int, rng: np.random.Generator) -> None:
    x = place(rng.standard_normal(2 * pairs, dtype=np.float32), placement)
    angle = rng.uniform(-9, 9, pairs)
    cosine = place(np.cos(angle).astype(np.float32), placement)
    sine = place(np.sin(angle).astype(np.float32), placement)
    a, b = x.astype(np.float64).reshape(2, pairs)
    expected = np.concatenate([a * cosine - b * sine, b * cosine + a * sine])
    magnitude = np.tile(np.abs(a) + np.abs(b), 2)
    kernels.rope(tier, x, cosine, sine)
    # Two products and a sum.
    assert (np.abs(x - expected) <= 3 * EPS * magnitude).all()


@pytest.mark.parametrize("n", SIZES)
def test_silu_multiply(tier: str, placement: str, n: int, rng: np.random.Generator) -> None:
    gate = place(rng.uniform(-30, 30, n).astype(np.float32), placement)
    up = place(rng.standard_normal(n, dtype=np.float32), placement)
    y = place(np.full(n, np.nan, np.float32), placement)
    kernels.silu_multiply(tier, gate, up, y)
    g = gate.astype(np.float64)
    # exp is within 2 units in the last place (4 EPS); a sum, a quotient and a product.
    np.testing.assert_allclose(y, g / (1 + np.exp(-g)) * up, rtol=7 * EPS)
    kernels.silu_multiply(tier, gate, up, gate)
    np.testing.assert_array_equal(gate, y)


def test_silu_over_the_whole_range(tier: str) -> None:
    gate = np.linspace(-120, 120, 400_001, dtype=np.float32)
    one = np.ones_like(gate)
    y = np.empty_like(gate)
    kernels.silu_multiply(tier, gate, one, y)
    g = gate.astype(np.float64)
    expected = g / (1 + np.exp(-g))
    # exp(-g) overflows float32 from 88.73 on, where the value, 1e-37, becomes 0.
    smallest = float(np.finfo(np.float32).tiny)
    np.testing.assert_allclose(y, expected, rtol=7 * EPS, atol=100 * smallest)


def test_silu_of_what_is_not_finite(tier: str) -> None:
    gate = np.array([np.inf, np.nan, -np.inf], np.float32)
    y = np.empty_like(gate)
    kernels.silu_multiply(tier, gate, np.ones_like(gate), y)
    # -inf gives NaN, as -inf / (1 + inf) does everywhere.
    np.testing.assert_array_equal(y, np.array([np.inf, np.nan, np.nan], np.float32))


@pytest.mark.parametrize("n", SIZES)
def test_add_multiply_scale(tier: str, placement: str, n: int, rng: np.random.Generator) -> None:
    """One rounding each: exactly what numpy gives in float32."""
    x = place(rng.standard_normal(n, dtype=np.float32), placement)
    y = place(rng.standard_normal(n, dtype=np.float32), placement)
    expected = y + x
    kernels.add(tier, x, y)
    np.testing.assert_array_equal(y, expected)
    expected = y * x
    kernels.multiply(tier, x, y)
    np.testing.assert_array_equal(y, expected)
    expected = x * np.float32(0.37)
    kernels.scale(tier, 0.37, x, y)
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("n", [*SIZES, 49_152])
@pytest.mark.parametrize("offset", [0.0, -80.0, 3000.0])
def test_log_sum_exp(
    tier: str, placement: str, n: int, offset: float, rng: np.random.Generator
) -> None:
    x = place((5 * rng.standard_normal(n) + offset).astype(np.float32), placement)
    x64 = x.astype(np.float64)
    expected = x64.max() + np.log(np.exp(x64 - x64.max()).sum())
    # The logarithm makes a relative error of the sum (64 additions a lane) an absolute one; the
    # result rounds once.
    tolerance = 16 * EPS + 2 * EPS * abs(expected)
    assert abs(kernels.log_sum_exp(tier, x) - expected) <= tolerance


def test_log_sum_exp_of_what_is_not_finite(tier: str) -> None:
    inf, nan = np.inf, np.nan
    for values, expected in [
        ([-inf, -inf, -inf], -inf),
        ([-inf, 1.0, -inf], 1.0),
        ([0.0, inf, 0.0], inf),
        ([0.0, nan, 0.0], nan),
        ([nan, inf, 0.0], nan),
        ([nan] * 9, nan),
    ]:
        got = kernels.log_sum_exp(tier, np.array(values, np.float32))
        np.testing.assert_equal(got, expected)


@pytest.mark.parametrize("n", SIZES)
def test_bf16(tier: str, placement: str, n: int, rng: np.random.Generator) -> None:
    x = place(rng.standard_normal(n, dtype=np.float32), placement)
    narrow = place(np.zeros(n, np.uint16), placement)
    kernels.to_bf16(tier, x, narrow)
    np.testing.assert_array_equal(narrow, x.astype(ml_dtypes.bfloat16).view(np.uint16))
    wide = place(np.zeros(n, np.float32), placement)
    kernels.from_bf16(tier, narrow, wide)
    np.testing.assert_array_equal(wide, x.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_bf16_rounds_every_pattern_to_nearest_even(tier: str) -> None:
    """All upper halves with the lower halves around a tie; a NaN stays one and keeps its sign."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    bits = (upper[:, None] | lower).reshape(-1)
    x = bits.view(np.float32)
    got = np.empty(x.size, np.uint16)
    kernels.to_bf16(tier, x, got)
    nan = np.isnan(x)
    expected = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    np.testing.assert_array_equal(got[~nan], expected[~nan])
    np.testing.assert_array_equal(got[nan], (bits[nan] >> 16).astype(np.uint16) | 0x40)
