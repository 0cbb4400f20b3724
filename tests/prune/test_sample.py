from __future__ import annotations

import numpy as np
import pytest

from slimformer.prune.sample import BLOCK, draw


class Given:
    """Draws what it is told instead of chance."""

    def __init__(self, uniform: np.ndarray) -> None:
        self.uniform = uniform

    def random(self, count: int) -> np.ndarray:
        assert count == len(self.uniform)
        return self.uniform


@pytest.mark.parametrize("n_tokens", [1, BLOCK - 1, BLOCK, 3 * BLOCK + 17])
def test_tokens_are_drawn_by_the_inverse_of_their_distribution(n_tokens: int) -> None:
    rng = np.random.default_rng(n_tokens)
    row = (100 + rng.standard_normal(n_tokens)).astype(np.float32)
    weights = np.exp(row.astype(np.float64))
    cumulative = weights.cumsum() / weights.sum()
    between = (np.concatenate(([0], cumulative[:-1])) + cumulative) / 2
    logits = np.broadcast_to(row, (n_tokens, n_tokens))
    assert draw(logits, Given(between)) == list(range(n_tokens))  # type: ignore[arg-type]


def test_the_last_token_is_the_furthest_and_impossible_ones_are_not_drawn() -> None:
    logits = np.full((2, 2 * BLOCK), -np.inf, dtype=np.float32)
    logits[:, [5, BLOCK + 3]] = 0
    ends = Given(np.array([0.0, np.nextafter(1.0, 0.0)]))
    assert draw(logits, ends) == [5, BLOCK + 3]  # type: ignore[arg-type]
