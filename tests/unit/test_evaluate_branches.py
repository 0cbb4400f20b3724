"""Continuations scored from forks are what they are on their own, for fewer tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from reference.engines import TOLERANCE
from reference.models import random_checkpoint, random_config
from slimformer.engine import Engine
from slimformer.evaluate import branches as module
from slimformer.evaluate.branches import MIN_SHARED, Branch, score_branches

VOCAB = 60


class CountingEngine(Engine):
    """Counts the tokens that it runs."""

    tokens = 0

    def forward(self, sessions: Any, tokens: Any, **options: Any) -> Any:
        self.tokens += sum(map(len, tokens))
        return super().forward(sessions, tokens, **options)


@pytest.fixture(scope="module")
def engine() -> CountingEngine:
    config = random_config(np.random.default_rng(5), vocab_size=VOCAB, max_positions=400)
    return CountingEngine(random_checkpoint(config, 5), weights="f32", threads=1)


def some(rng: np.random.Generator, length: int) -> list[int]:
    return [int(token) for token in rng.integers(0, VOCAB, length)]


def check(engine: Engine, branches: Sequence[Branch]) -> None:
    """Each score is that of the whole sequence run by itself."""
    found = score_branches(engine, branches)
    assert [len(scores) for scores in found] == [len(b.continuations) for b in branches]
    for branch, scores in zip(branches, found, strict=True):
        for ids, score in zip(branch.continuations, scores, strict=True):
            whole = [*branch.context, *ids]
            alone = engine.score([whole])[0][-(len(ids) - 1) :]
            assert score.log_likelihood == pytest.approx(float(alone.sum()), rel=TOLERANCE)
            logits = engine.forward([engine.session()], [whole[:-1]], logits="all")
            greedy = logits[-(len(ids) - 1) :].argmax(axis=1).tolist() == list(ids[1:])
            assert score.is_greedy == greedy


@pytest.mark.parametrize("limits", [(1, 1), (64, 8), (2048, 256)])
def test_any_mixture_is_scored_right(
    engine: Engine, limits: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_TOKENS", limits[0])
    monkeypatch.setattr(module, "BATCH_ROWS", limits[1])
    rng = np.random.default_rng(1)
    preamble, other = some(rng, 70), some(rng, MIN_SHARED)
    contexts = [
        *(preamble + some(rng, n) for n in (1, 9, 20)),
        *(other + some(rng, n) for n in (3, 40)),
        preamble[:50],
        preamble,
        some(rng, 1),
        some(rng, 5),
    ]
    contexts += [contexts[1], contexts[8]]
    rng.shuffle(contexts)
    check(
        engine,
        [
            Branch.of(context, [some(rng, 1 + int(rng.integers(4))) for _ in range(1 + index % 3)])
            for index, context in enumerate(contexts)
        ],
    )


def test_a_common_beginning_runs_once(engine: CountingEngine) -> None:
    rng = np.random.default_rng(2)
    examples = some(rng, 200)
    branches = [Branch.of(examples + some(rng, 5), [some(rng, 2)] * 2) for _ in range(10)]
    engine.tokens = 0
    score_branches(engine, branches)
    # 4 tokens of each context, whose last token begins each of two continuations of 2.
    assert engine.tokens == 200 + 10 * (4 + 2 * 2)


def test_the_same_context_runs_once(engine: CountingEngine) -> None:
    context = some(np.random.default_rng(3), 20)
    engine.tokens = 0
    score_branches(engine, [Branch.of(context, [[1]]), Branch.of(context, [[2]])])
    assert engine.tokens == 19 + 2


def test_progress_is_told(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_ROWS", 2)
    told: list[int] = []
    score_branches(engine, [Branch.of([1], [[2]])] * 5, done=told.append)
    assert told == [2, 4, 5]


def test_nothing_gives_nothing(engine: Engine) -> None:
    assert score_branches(engine, []) == []
