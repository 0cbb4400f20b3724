from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from prune.cases import seeds
from slimformer.prune import divergence
from slimformer.prune.divergence import Predictions


@given(seeds)
def test_divergence_is_that_of_kullback_and_leibler(seed: int) -> None:
    rng = np.random.default_rng(seed)
    dense, other = (rng.normal(0, 5, (7, 30)).astype(np.float32) for _ in range(2))
    p, q = (
        np.exp(x - np.logaddexp.reduce(x, axis=1)[:, None], dtype=float) for x in (dense, other)
    )
    expected = np.mean(np.sum(p * np.log(p / q), axis=1))
    assert Predictions(dense).divergence(other) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_the_same_predictions_do_not_diverge() -> None:
    logits = np.random.default_rng(0).normal(0, 5, (7, 30)).astype(np.float32)
    predictions = Predictions(logits)
    assert predictions.divergence(logits) == pytest.approx(0, abs=1e-5)
    # What all logits of a place have in common says nothing; even where exp overflows.
    assert predictions.divergence(logits + np.float32(200)) == pytest.approx(0, abs=1e-3)


def test_large_vocabularies_are_worked_through_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    dense, other = (rng.normal(0, 5, (7, 30)).astype(np.float32) for _ in range(2))
    at_once = Predictions(dense).divergence(other)
    for block in (1, 70):
        monkeypatch.setattr(divergence, "BLOCK", block)
        assert Predictions(dense).divergence(other) == pytest.approx(at_once, rel=1e-6)
