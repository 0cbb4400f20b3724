"""The sampler: which tokens can come, how often, and the same ones everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimformer._core import Sampler
from slimformer.errors import ConfigError, DataError, TokenError

NOTHING = np.empty(0, dtype=np.int32)

FIXED = [814, 318, 983, 701, 793, 588]
"""What an independent xoshiro256++ seeded by splitmix64 with 42 gives, in thousandths."""


def logits_of(probabilities: list[float]) -> npt.NDArray[np.float32]:
    return np.log(np.array(probabilities, dtype=np.float32))


def drawn(logits: npt.NDArray[np.float32], count: int, **options: Any) -> npt.NDArray[np.int64]:
    """How often each token comes in ``count`` draws."""
    sampler = Sampler(**{"temperature": 1.0, **options})
    tokens = [sampler.sample(logits, NOTHING) for _ in range(count)]
    return np.bincount(tokens, minlength=len(logits))


def test_greedy_takes_the_first_of_the_likeliest() -> None:
    assert Sampler().sample(np.array([1, 5, 3, 5], dtype=np.float32), NOTHING) == 1


def test_frequencies_are_the_probabilities() -> None:
    probabilities = [0.5, 0.3, 0.15, 0.05]
    counts = drawn(logits_of(probabilities), 20000)
    # Four standard deviations of a binomial count are at most 1.5 % of the draws here.
    np.testing.assert_allclose(counts / 20000, probabilities, atol=0.015)


def test_temperature_sharpens() -> None:
    counts = drawn(logits_of([0.6, 0.4]), 20000, temperature=0.5)
    assert counts[0] / 20000 == pytest.approx(0.36 / (0.36 + 0.16), abs=0.015)


@pytest.mark.parametrize(
    ("options", "possible"),
    [
        ({"top_k": 2}, {1, 3}),
        ({"top_k": 100}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.5}, {1, 3}),
        ({"top_p": 0.39}, {1}),
        ({"top_p": 1e-9}, {1}),
        ({"min_p": 0.5}, {1, 3}),
        ({"min_p": 1.0}, {1}),
        ({"top_k": 3, "top_p": 0.8, "min_p": 0.3}, {1, 3}),
    ],
)
def test_what_is_kept(options: dict[str, float], possible: set[int]) -> None:
    logits = logits_of([0.1, 0.4, 0.15, 0.25, 0.1])
    assert set(np.flatnonzero(drawn(logits, 2000, **options))) == possible


def test_top_p_over_a_flat_vocabulary() -> None:
    counts = drawn(np.zeros(3000, dtype=np.float32), 20000, top_p=0.5)
    assert np.flatnonzero(counts).max() == 1499


def test_repetition_penalty_divides_and_multiplies() -> None:
    history = np.array([0, 0, 2], dtype=np.int32)
    sampler = Sampler(repetition_penalty=2.0)
    assert sampler.sample(np.array([3.0, 2.0, 1.0], dtype=np.float32), history) == 1
    assert sampler.sample(np.array([-1.0, -1.5, -9.0], dtype=np.float32), history) == 1
    # Once, however often the token occurred.
    assert sampler.sample(np.array([3.0, 1.0, 1.0], dtype=np.float32), history) == 0


def test_same_seed_same_tokens() -> None:
    logits = np.random.default_rng(0).standard_normal(1000).astype(np.float32)

    def tokens(seed: int) -> list[int]:
        sampler = Sampler(temperature=1.0, top_p=0.9, seed=seed)
        return [sampler.sample(logits, NOTHING) for _ in range(20)]

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)


def test_tokens_of_a_seed_are_fixed() -> None:
    """The same on every platform and in every version: text with a seed is quoted by people."""
    sampler = Sampler(temperature=1.0, seed=42)
    logits = np.zeros(1000, dtype=np.float32)
    assert [sampler.sample(logits, NOTHING) for _ in range(6)] == FIXED


@given(seed=st.integers(0, (1 << 64) - 1), size=st.integers(1, 50))
def test_any_options_give_a_token_that_may_come(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal(size) * 10 ** rng.uniform(-3, 3)).astype(np.float32)
    logits[rng.random(size) < 0.3] = -np.inf
    logits[rng.integers(size)] = 0.0
    sampler = Sampler(
        temperature=float(10 ** rng.uniform(-4, 4)),
        top_k=int(rng.integers(0, size + 2)),
        top_p=float(rng.uniform(1e-3, 1)),
        min_p=float(rng.uniform(0, 1)),
        repetition_penalty=float(rng.uniform(0.5, 2)),
        seed=seed,
    )
    token = sampler.sample(logits, rng.integers(0, size, 5).astype(np.int32))
    assert logits[token] > -np.inf


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"min_p": 2.0},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": float("inf")},
    ],
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Sampler(**options)


@pytest.mark.parametrize("bad", [[np.nan, 1], [np.inf, 1], [-np.inf, -np.inf], []])
def test_logits_that_cannot_be_used(bad: list[float]) -> None:
    with pytest.raises(DataError):
        Sampler().sample(np.array(bad, dtype=np.float32), NOTHING)


def test_arguments_of_another_kind() -> None:
    logits = np.zeros(4, dtype=np.float32)
    with pytest.raises(DataError, match="logits"):
        Sampler().sample(logits.astype(np.float64), NOTHING)
    with pytest.raises(DataError, match="logits"):
        Sampler().sample(logits[None], NOTHING)
    with pytest.raises(TokenError):
        Sampler().sample(logits, np.array([4], dtype=np.int32))
    with pytest.raises(TokenError):
        Sampler(repetition_penalty=1.5).sample(logits, np.array([-1], dtype=np.int32))
