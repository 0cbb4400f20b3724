"""Kernels over single rows: norms, rotation, activation, sums, conversions."""

from __future__ import annotations

import math

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
@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_layer_norm(
    tier: str, placement: str, n: int, offset: float, rng: np.random.Generator
) -> None:
    x = place(3 * rng.standard_normal(n, dtype=np.float32) + np.float32(offset), placement)
    weight = place(rng.standard_normal(n, dtype=np.float32), placement)
    bias = place(rng.standard_normal(n, dtype=np.float32), placement)
    y = place(np.full(n, np.nan, np.float32), placement)
    kernels.layer_norm(tier, x, weight, bias, 1e-5, y)
    x64 = x.astype(np.float64)
    apart = x64 - x64.mean()
    factor = 1 / np.sqrt((apart**2).mean() + 1e-5)
    # The mean is off by roundings of what is summed, sqrt(n) of them; then as the RMS norm.
    shift = (2 + np.sqrt(n)) * EPS * np.abs(x64).max() * factor
    bound = (8 + np.sqrt(n)) * EPS * np.abs(apart) * factor + shift
    bound = bound * np.abs(weight) + 2 * EPS * np.abs(bias)
    assert (np.abs(y - (apart * factor * weight + bias)) <= bound).all()
    kernels.layer_norm(tier, x, weight, bias, 1e-5, x)
    np.testing.assert_array_equal(x, y)


ACTIVATIONS = ("silu", "gelu_tanh", "gelu", "relu")


def activated(activation: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The value in float64, and how far off float32 may be."""
    x = x.astype(np.float64)
    if activation == "relu":
        return np.maximum(x, 0), np.zeros_like(x)
    if activation == "gelu":
        above = 0.5 * np.vectorize(math.erfc, otypes=[float])(np.abs(x) / math.sqrt(2))
        mass = np.abs(x) * above
        # The fit is off by 2^-22.4 and a dozen roundings, exp by its argument's: x^2 / 2.
        return np.maximum(x, 0) - mass, (20 + x**2) * EPS * mass + EPS * np.abs(x)
    twice = x if activation == "silu" else np.sqrt(8 / np.pi) * (x + 0.044715 * x**3)
    with np.errstate(over="ignore"):
        value = x / (1 + np.exp(-twice))
    # exp is within 2 units in the last place (4 EPS) and off by its argument's roundings, of
    # which silu's has none; a sum and a quotient.
    roundings = 0 if activation == "silu" else 4 * np.maximum(-twice, 0)
    return value, (6 + roundings) * EPS * np.abs(value)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("n", SIZES)
def test_activations_with_and_without_factors(
    tier: str, placement: str, n: int, activation: str, rng: np.random.Generator
) -> None:
    x = place(rng.uniform(-9, 9, n).astype(np.float32), placement)
    factors = place(rng.standard_normal(n, dtype=np.float32), placement)
    y = place(np.full(n, np.nan, np.float32), placement)
    value, bound = activated(activation, x)
    kernels.activate(tier, activation, x, None, y)
    assert (np.abs(y - value) <= bound).all()
    kernels.activate(tier, activation, x, factors, y)
    bound = (bound + EPS * np.abs(value)) * np.abs(factors)
    assert (np.abs(y - value * factors) <= bound).all()
    kernels.activate(tier, activation, x, factors, x)
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_over_the_whole_range(tier: str, activation: str) -> None:
    x = np.linspace(-120, 120, 200_001, dtype=np.float32)
    y = np.empty_like(x)
    kernels.activate(tier, activation, x, None, y)
    value, bound = activated(activation, x)
    # exp overflows float32 from 88.73 on and is no normal number from -87.3 on, where the value,
    # some 1e-37, may become 0.
    smallest = float(np.finfo(np.float32).tiny)
    assert (np.abs(y - value) <= bound + 300 * smallest).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_of_what_is_not_finite(tier: str, activation: str) -> None:
    x = np.array([np.inf, np.nan, 3e38, -3e38], np.float32)
    y = np.empty_like(x)
    kernels.activate(tier, activation, x, None, y)
    np.testing.assert_array_equal(y, np.array([np.inf, np.nan, 3e38, 0], np.float32))


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("size", [1e-3, 1.0, 100.0])
def test_soft_cap(tier: str, placement: str, n: int, size: float, rng: np.random.Generator) -> None:
    y = place((size * rng.standard_normal(n)).astype(np.float32), placement)
    expected = 30 * np.tanh(y.astype(np.float64) / 30)
    kernels.soft_cap(tier, 30.0, y)
    # tanh is within 5 units in the last place (10 EPS); 1 / cap and two products.
    np.testing.assert_allclose(y, expected, rtol=14 * EPS)


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


@pytest.mark.parametrize("n", SIZES)
def test_to_int8(tier: str, placement: str, n: int, rng: np.random.Generator) -> None:
    x = place(3 * rng.standard_normal(n, dtype=np.float32), placement)
    q = place(np.full(n, 99, np.int8), placement)
    scale = np.float32(kernels.to_int8(tier, x, q))
    assert scale == np.abs(x).max() / np.float32(127)
    np.testing.assert_array_equal(q, np.rint(x * (np.float32(1) / scale)))


def test_to_int8_of_nothing_and_of_what_is_not_finite(tier: str) -> None:
    q = np.full(37, 99, np.int8)
    assert kernels.to_int8(tier, np.zeros(37, np.float32), q) > 0
    assert (q == 0).all()
    for value in (np.inf, -np.inf, np.nan):
        x = np.ones(37, np.float32)
        x[35] = value
        assert math.isnan(kernels.to_int8(tier, x, q))
