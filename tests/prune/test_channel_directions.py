"""Directions that go: what they cost, and that going down finds cheaper ones."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from prune.test_allocate import uniform_model
from slimformer.checkpoint import Checkpoint
from slimformer.prune import plan_channels
from slimformer.prune.channels.directions import cheapest_directions, completed
from slimformer.prune.stream import Windows

Array = npt.NDArray[np.float64]

TEXT = ["the river of light and the stone engine in the layer of it 0123456789 " * 200]


def moment(rng: np.random.Generator, size: int) -> Array:
    factor = rng.standard_normal((size, 2 * size)) * np.geomspace(1, 0.02, size)[:, None]
    factor = np.linalg.qr(rng.standard_normal((size, size)))[0] @ factor
    return np.asarray(factor @ factor.T)


def cost(columns: Array, moments: list[Array], felt: Array) -> float:
    """Of the best guess of what is removed, made from the rest, in float64."""
    size, count = columns.shape
    kept = np.linalg.qr(columns, mode="complete")[0][:, count:]
    total = 0.0
    for second in moments:
        ridged = second + 0.03 * np.trace(second) / size * np.eye(size)
        inner = kept.T @ ridged @ kept
        cross = kept.T @ ridged @ columns
        left = columns.T @ ridged @ columns - cross.T @ np.linalg.solve(inner, cross)
        total += float(np.trace(columns.T @ felt @ columns @ left))
    return total


@pytest.mark.parametrize("count", [1, 3, 9])
def test_they_cost_less_than_the_least_of_the_stream(count: int) -> None:
    rng = np.random.default_rng(count)
    moments = [moment(rng, 12) for _ in range(3)]
    felt = moment(rng, 12)
    found = cheapest_directions(moments, felt, count)
    np.testing.assert_allclose(found.T @ found, np.eye(count), atol=1e-10)
    least = np.linalg.eigh(np.sum(moments, axis=0))[1][:, :count]
    assert cost(found, moments, felt) < 0.8 * cost(least, moments, felt)
    # No small change of them is better: it is the bottom of a valley.
    for _ in range(5):
        near = np.linalg.qr(found + 0.02 * rng.standard_normal(found.shape))[0]
        assert cost(near, moments, felt) > 0.995 * cost(found, moments, felt)


def test_what_nothing_feels_goes_first() -> None:
    rng = np.random.default_rng(0)
    felt = np.eye(10)
    felt[4, 4] = felt[7, 7] = 0
    found = cheapest_directions([moment(rng, 10)], felt, 2)
    assert np.abs(found[[4, 7]]).sum() > 0.0
    assert np.linalg.norm(found[[4, 7]]) ** 2 == pytest.approx(2, rel=1e-3)


def test_all_and_none_are_no_search() -> None:
    moments = [moment(np.random.default_rng(0), 6)]
    assert cheapest_directions(moments, np.eye(6), 0).shape == (6, 0)
    assert cheapest_directions(moments, np.eye(6), 6).shape == (6, 6)


def test_the_rest_of_the_basis_falls_in_what_it_holds() -> None:
    rng = np.random.default_rng(1)
    second = moment(rng, 8)
    removed = np.linalg.qr(rng.standard_normal((8, 3)))[0]
    basis = completed(removed, [second])
    np.testing.assert_allclose(basis.T @ basis, np.eye(8), atol=1e-10)
    np.testing.assert_array_equal(basis[:, 5:], removed)
    held = np.diag(basis.T @ second @ basis)[:5]
    assert (np.diff(held) <= 1e-12 * held[0]).all()


def test_plans_take_what_tells_how_much_is_felt() -> None:
    model = uniform_model(layers=2, neurons=16)
    size = model.config.n_channels
    seen: list[tuple[int, ...]] = []

    def felt(checkpoint: Checkpoint, windows: Windows) -> Array:
        seen.append(windows.shape)
        assert checkpoint is model
        return np.diag(np.arange(1.0, size + 1))

    source, recipe = plan_channels(
        model,
        size - 4,
        rotated=True,
        sensitivity=felt,
        calibration=TEXT,
        tokens=16384,
        threads=1,
    )
    assert recipe.channels == tuple(range(size - 4))
    assert source.config.n_channels == size
    assert len(seen) == 1
    assert np.prod(seen[0]) <= 4096
