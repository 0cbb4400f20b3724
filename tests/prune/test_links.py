from __future__ import annotations

import numpy as np
import pytest

from slimformer.config import LinkConfig
from slimformer.prune.links import LinearMap, fit_link, link_matrix, link_shapes
from slimformer.prune.refit import Evidence


def evidence(matrix: np.ndarray, seed: int, tokens: int = 400, noise: float = 0.0) -> Evidence:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(tokens, matrix.shape[1])) * np.linspace(0.5, 2, matrix.shape[1])
    y = x @ matrix.T + noise * rng.normal(size=(tokens, len(matrix)))
    return Evidence(x.T @ x, x.T @ y, float(np.sum(y * y)), tokens)


def parts(matrix: np.ndarray, noise: float = 0.0) -> list[Evidence]:
    return [evidence(matrix, seed, noise=noise) for seed in range(3)]


MATRICES = {
    "full": np.random.default_rng(1).normal(size=(12, 12)),
    "low_rank": np.outer(np.arange(12.0), np.ones(12)),
    "diagonal": np.diag(np.arange(12.0)),
}
SHAPES = {"full": LinkConfig("full"), "low_rank": LinkConfig("low_rank", 1)}
SHAPES["diagonal"] = LinkConfig("diagonal")
CONSTANT = LinkConfig("constant")


def means(vector: np.ndarray, noise: float = 0.0) -> list[Evidence]:
    """Evidence for a map of an input of one; a token counts as an odd weight says."""
    found = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        scale = rng.uniform(0.5, 2.0, size=(400, 1))
        y = (vector + noise * rng.normal(size=(400, len(vector)))) * scale
        found.append(Evidence(scale.T @ scale, scale.T @ y, float(np.sum(y * y)), 400))
    return found


@pytest.mark.parametrize("kind", MATRICES)
def test_a_link_of_the_right_shape_is_found(kind: str) -> None:
    whole = MATRICES[kind]
    wishes = [parts(0.75 * whole), parts(0.25 * whole)]
    link, without = fit_link(wishes, SHAPES[kind])
    for found in (link_matrix(link), *without):
        assert np.abs(found - whole).max() < 0.1 * np.abs(whole).max()


def test_a_constant_is_the_mean_of_what_is_missed() -> None:
    vector = np.arange(12.0) - 5
    link, without = fit_link([means(0.75 * vector), means(0.25 * vector)], CONSTANT)
    assert link.keys() == {"link.bias"}
    for found in (link_matrix(link), *without):
        np.testing.assert_allclose(found[:, 0], vector, rtol=0, atol=1e-12)


def test_a_constant_that_explains_nothing_stays_zero() -> None:
    nothing = means(np.zeros(12), noise=1.0)
    link, without = fit_link([nothing, nothing], CONSTANT)
    assert not any(values.any() for values in (*link.values(), *without))


def test_a_link_that_explains_nothing_stays_zero() -> None:
    nothing = parts(np.zeros((12, 12)), noise=1.0)
    link, without = fit_link([nothing, nothing], LinkConfig("full"))
    assert not any(values.any() for values in (*link.values(), *without))


def test_a_drift_that_is_chance_leaves_the_map_as_it_is() -> None:
    own, drift = parts(MATRICES["full"]), parts(np.zeros((12, 12)), noise=30.0)
    alone, _ = fit_link([own, parts(np.zeros((12, 12)))], LinkConfig("full"))
    link, _ = fit_link([own, drift], LinkConfig("full"))
    np.testing.assert_array_equal(link["link.weight"], alone["link.weight"])


def test_more_weights_leave_less_error() -> None:
    whole = evidence(MATRICES["full"], 5)
    matrix = np.linalg.solve(whole.gram, whole.cross).T.astype(np.float64)
    found = LinearMap(matrix, whole.gram)
    low = [LinkConfig("low_rank", rank) for rank in (1, 2, 5)]
    errors = [whole.error(link_matrix(found.shaped(s))) for s in (*low, LinkConfig("full"))]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-9 * errors[0]


@pytest.mark.parametrize("channels", [1, 2, 7, 48, 576])
def test_no_rank_is_larger_than_a_matrix(channels: int) -> None:
    shapes = link_shapes(channels)
    assert [shape.kind for shape in shapes[:2]] == ["constant", "diagonal"]
    assert shapes[-1].kind == "full"
    assert all(2 * (shape.rank or 0) < channels for shape in shapes)
