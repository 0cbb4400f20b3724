from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prune.cases import seeds
from slimformer.prune.refit import Evidence, choose, least_squares, mean_compensation

Array = npt.NDArray[np.float64]


def evidence(x: Array, y: Array) -> Evidence:
    return Evidence(x.T @ x, x.T @ y, float(np.sum(y * y)), len(x))


def inputs(rng: np.random.Generator, tokens: int, width: int) -> Array:
    """Correlated, with a mean, as activations are."""
    mixing = rng.standard_normal((width, width)) + np.eye(width)
    return (rng.standard_normal((tokens, width)) + rng.standard_normal(width)) @ mixing


@given(seeds, st.integers(1, 20), st.integers(1, 9))
def test_a_map_that_exists_is_found(seed: int, width: int, outputs: int) -> None:
    rng = np.random.default_rng(seed)
    x = inputs(rng, 20 * width + 5, width)
    true = rng.standard_normal((outputs, width))
    start = rng.standard_normal((outputs, width))
    found = choose([evidence(x[i::3], x[i::3] @ true.T) for i in range(3)], start, first=0.1)
    assert found.damping is not None
    assert found.after < found.before
    exact = least_squares(evidence(x, x @ true.T), start, 0.0)
    # The Gram matrix squares the condition number of x, which random mixing leaves below 1e4.
    np.testing.assert_allclose(exact, true, atol=1e-5 * np.abs(true).max())


@given(seeds)
def test_damping_leads_from_the_solution_to_the_old_weight(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y, start = inputs(rng, 200, 8), rng.standard_normal((200, 3)), rng.standard_normal((3, 8))
    known = evidence(x, y)
    errors = [known.error(least_squares(known, start, damping)) for damping in (0, 0.1, 10, 1e9)]
    assert errors == sorted(errors)
    np.testing.assert_allclose(least_squares(known, start, 1e9), start, atol=1e-6)


@given(seeds)
def test_the_error_is_the_mean_squared_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y, weight = inputs(rng, 50, 6), rng.standard_normal((50, 4)), rng.standard_normal((4, 6))
    direct = float(np.mean(np.sum((x @ weight.T - y) ** 2, axis=1)))
    assert evidence(x, y).error(weight) == pytest.approx(direct, rel=1e-9, abs=1e-9)


def test_a_refit_that_does_not_help_is_refused() -> None:
    rng = np.random.default_rng(0)
    x, weight = inputs(rng, 100, 5), rng.standard_normal((3, 5))
    noise = x @ weight.T + 10 * rng.standard_normal((100, 3))
    found = choose([evidence(x, noise), evidence(x, x @ weight.T)], weight, first=0.1)
    assert found.damping is None
    assert found.weight is weight
    assert found.without == (weight, weight)
    assert found.after == found.before


@given(seeds, st.integers(2, 5))
def test_no_weight_has_seen_the_part_that_is_held_out(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((3, 5))
    xs = [inputs(rng, 200, 5) for _ in range(count)]
    parts = [evidence(x, x @ weight.T + 0.1 * rng.standard_normal((200, 3))) for x in xs]
    found = choose(parts, np.zeros((3, 5)), first=1.0)
    assert found.damping is not None
    for part, own in enumerate(found.without):
        others = sum(parts[:part] + parts[part + 1 :], start=evidence(xs[0][:0], xs[0][:0, :3]))
        expected = least_squares(others, np.zeros((3, 5)), found.damping)
        np.testing.assert_allclose(own, expected, rtol=1e-6, atol=1e-9)


def test_a_projection_that_reads_only_zeros_stays() -> None:
    weight = np.ones((2, 3))
    zeros = evidence(np.zeros((10, 3)), np.ones((10, 2)))
    assert choose([zeros, zeros], weight, first=0.1).weight is weight
    kept = mean_compensation(weight, np.array([0, 2]), np.zeros(3), np.zeros((3, 3)))
    np.testing.assert_array_equal(kept, weight[:, [0, 2]])


@given(seeds, st.integers(2, 20))
def test_the_mean_output_is_reproduced(seed: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    x = inputs(rng, 300, width)
    weight = rng.standard_normal((4, width))
    kept = np.sort(rng.choice(width, int(rng.integers(1, width)), replace=False))
    mean, gram = x.mean(axis=0), x.T @ x / len(x)
    new = mean_compensation(weight, kept, mean, gram)
    np.testing.assert_allclose(new @ mean[kept], weight @ mean, rtol=1e-8, atol=1e-8)
    # No other correction with that mean disturbs the outputs less.
    change = new - weight[:, kept]
    other = change + np.outer(rng.standard_normal(4), _orthogonal_to(mean[kept], rng))
    inner = gram[np.ix_(kept, kept)]
    assert np.sum(change @ inner * change) <= np.sum(other @ inner * other) * (1 + 1e-3)


def _orthogonal_to(vector: Array, rng: np.random.Generator) -> Array:
    direction = rng.standard_normal(len(vector))
    return np.asarray(direction - vector * (direction @ vector) / (vector @ vector))
