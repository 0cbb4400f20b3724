"""Which weights of one matrix become zero, and what the others become."""

from __future__ import annotations

import numpy as np
import pytest

from slimformer.errors import ConfigError, RecipeError
from slimformer.prune.zeros.choice import METHODS, Method, Zeros, layer_of
from slimformer.prune.zeros.pattern import Pattern
from slimformer.prune.zeros.prices import Costs
from slimformer.prune.zeros.problem import Inputs, Solver
from slimformer.prune.zeros.shares import FARTHEST, shares_by_cost
from slimformer.prune.zeros.sparsegpt import inverse_factor, sparsegpt
from slimformer.prune.zeros.survivors import refit_survivors


def problem(outputs: int, inputs: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A matrix and the second moments of correlated inputs."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((inputs, inputs)) / np.sqrt(inputs) + np.eye(inputs)
    x = rng.standard_normal((8 * inputs, inputs)) @ mixing * rng.lognormal(size=inputs)
    return rng.standard_normal((outputs, inputs)).astype(np.float32), x.T @ x


def error(weight: np.ndarray, wanted: np.ndarray, gram: np.ndarray) -> float:
    change = (weight - wanted).astype(np.float64)
    return float(np.vdot(change @ gram, change))


@pytest.mark.parametrize("text", ["any", "2:4", "1:3", "1x16", "4x4"])
def test_patterns_are_what_they_say(text: str) -> None:
    assert str(Pattern.parse(text)) == text


@pytest.mark.parametrize("text", ["", "4:2", "4:4", "0:4", "0x4", "2:4:8", "2-4", "9999x1", "٢:٤"])
def test_no_pattern(text: str) -> None:
    with pytest.raises(ConfigError, match="pattern: expected any, N:M"):
        Pattern.parse(text)


def test_blocks_go_whole() -> None:
    scores = np.random.default_rng(0).random((7, 37))
    kept = Pattern.parse("2x16").select(scores, 0.5)
    assert kept.shape == scores.shape
    for row in range(0, 7, 2):
        for column in range(0, 37, 16):
            assert np.ptp(kept[row : row + 2, column : column + 16].astype(int)) == 0
    assert 0.3 < kept.mean() < 0.7


@pytest.mark.parametrize("inputs", [1, 7, 37])
def test_the_factor_is_that_of_the_inverse(inputs: int) -> None:
    _, gram = problem(1, inputs)
    system = gram + np.eye(inputs)
    factor = inverse_factor(system).astype(np.float64)
    np.testing.assert_array_equal(factor, np.triu(factor))
    np.testing.assert_allclose(factor.T @ factor @ system, np.eye(inputs), atol=1e-3)


def test_sparsegpt_makes_up_for_what_goes() -> None:
    """By its own mask: to the left of the last column all of it, in the least-squares sense."""
    wanted, gram = problem(5, 6)
    factor = inverse_factor(gram)
    weight, kept = sparsegpt(wanted, factor, lambda scores: np.arange(6) >= 3 + 0 * scores, 6)
    later = np.linalg.solve(gram[3:, 3:], gram[3:, :3] @ wanted[:, :3].T).T
    np.testing.assert_array_equal(kept, np.arange(6) >= np.full((5, 1), 3))
    np.testing.assert_allclose(weight[:, 3:], wanted[:, 3:] + later, rtol=1e-3, atol=1e-4)
    assert not weight[:, :3].any()


def test_survivors_are_the_least_squares_solution() -> None:
    wanted, gram = problem(9, 21)
    kept = np.random.default_rng(1).random(wanted.shape) < 0.5
    start = np.where(kept, wanted, np.float32(0))
    found = refit_survivors(start, kept, wanted, gram.astype(np.float32), 60)
    assert not found[~kept].any()
    for row, places in enumerate(kept):
        exact = np.linalg.solve(gram[np.ix_(places, places)], gram[places] @ wanted[row])
        np.testing.assert_allclose(found[row, places], exact, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("pattern", ["any", "2:4", "1x4", "3x2"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_in_every_pattern(method: Method, pattern: str) -> None:
    wanted, gram = problem(13, 37)
    form = Pattern.parse(pattern)
    weight = Solver(method, form, refit=True).solve(wanted, Inputs(gram), 0.5)
    zeros = weight == 0
    if form.of:
        groups = (~zeros)[:, :36].reshape(13, 9, 4).sum(axis=-1)
        assert (groups == 2).all()
    else:
        assert zeros.mean() == pytest.approx(0.5, abs=0.06)


def test_the_better_the_method_the_smaller_the_error() -> None:
    wanted, gram = problem(64, 96)
    inputs = Inputs(gram)

    def of(method: Method, *, refit: bool) -> float:
        weight = Solver(method, Pattern(), refit).solve(wanted, inputs, 0.5)
        return error(weight, wanted, gram)

    assert of("wanda", refit=False) < 0.8 * of("magnitude", refit=False)
    assert of("sparsegpt", refit=False) < 0.8 * of("wanda", refit=False)
    for method in METHODS:
        assert of(method, refit=True) < 0.95 * of(method, refit=False)


def test_wanda_compares_within_an_output() -> None:
    wanted = np.array([[1, 2, 3, 4], [10, 20, 30, 40]], np.float32)
    kept = Solver("wanda", Pattern(), refit=False).places(wanted, np.ones(4, np.float32), 0.5)
    assert kept.tolist() == [[False, False, True, True]] * 2
    kept = Solver("magnitude", Pattern(), refit=False).places(wanted, np.ones(4, np.float32), 0.5)
    assert kept.tolist() == [[False] * 4, [True] * 4]


def test_inputs_that_nothing_came_by() -> None:
    wanted, _ = problem(3, 5)
    weight = Solver("sparsegpt", Pattern(), refit=True).solve(wanted, Inputs(np.zeros((5, 5))), 0.4)
    assert np.isfinite(weight).all()
    assert (weight == 0).mean() == pytest.approx(0.4)


SIZES = {
    f"layers.{layer}.{part}.weight": 100
    for layer in range(3)
    for part in ("attention.q", "attention.k", "attention.o", "ffn.up", "ffn.down")
}


def test_what_costs_less_has_more_zeros() -> None:
    shares = shares_by_cost(Costs((0.22, 0.0, 0.12, 0.18, 0.1), (0.2, 0.25, 0.22)), SIZES, 0.5)
    assert sum(shares.values()) == pytest.approx(0.5 * len(shares))
    assert all(abs(share - 0.5) <= FARTHEST + 1e-9 for share in shares.values())
    for layer in range(3):
        q, k, o, up, down = (shares[name] for name in SIZES if layer_of(name) == layer)
        assert up < o < q == k
        assert o < down
    for part in ("attention.q", "ffn.up"):
        first, second, third = (shares[f"layers.{layer}.{part}.weight"] for layer in range(3))
        assert first > third > second


@pytest.mark.parametrize("sparsity", [0.01, 0.3, 0.99])
@pytest.mark.parametrize("layers", [(1e-9, 1e3, -5.0), (0.0, 0.0, 0.0), (-1.0, -1.0, -1.0)])
def test_shares_are_shares(sparsity: float, layers: tuple[float, ...]) -> None:
    shares = shares_by_cost(Costs((0.1, 0.0, 1e6, -3.0, 0.0), layers), SIZES, sparsity)
    assert all(0 <= share < 1 for share in shares.values())


ZEROS = Zeros("wanda", Pattern.parse("2:4"), {"layers.0.ffn.up.weight": 0.5})


def test_zeros_are_data() -> None:
    assert Zeros.from_dict(ZEROS.to_dict(), "zeros") == ZEROS


def test_zeros_follow_their_layers_and_sub_blocks() -> None:
    names = [f"layers.{layer}.ffn.up.weight" for layer in (0, 1, 2, 11)]
    shares = dict(zip(names, (0.0, 0.1, 0.3, 0.2), strict=True))
    moved = Zeros("wanda", Pattern(), shares).in_layers(
        [(1, {"ffn": "ffn"}), (2, {"attention": "attention"}), (11, {"ffn": "ffn"})]
    )
    assert moved.shares == {"layers.0.ffn.up.weight": 0.1, "layers.2.ffn.up.weight": 0.2}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"method": "random"}, "expected one of sparsegpt"),
        ({"method": 3}, "expected text"),
        ({"pattern": "4:2"}, "pattern: expected"),
        ({"shares": {"a": 1.0}}, "from 0 to below 1"),
        ({"shares": {"a": float("nan")}}, "expected a number"),
        ({"shares": {"a": True}}, "expected a number"),
        ({"shares": [1]}, "expected an object"),
        ({"more": 1}, "expected an object of"),
    ],
)
def test_hostile_zeros(changed: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Zeros.from_dict({**ZEROS.to_dict(), **changed}, "recipe: zeros")
