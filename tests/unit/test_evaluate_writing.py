"""Texts that are written side by side are those that are written alone."""

from __future__ import annotations

import numpy as np
import pytest

from reference.models import random_checkpoint, random_config
from slimformer.engine import Engine
from slimformer.evaluate.writing import write_greedily
from slimformer.generation import GenerationOptions

LIMIT = 40


@pytest.fixture(scope="module")
def engine() -> Engine:
    config = random_config(np.random.default_rng(4), ragged=False, max_positions=LIMIT)
    return Engine(random_checkpoint(config, 4, tokenizer=True), weights="f32", threads=1)


def options(max_tokens: int, *stop: str) -> GenerationOptions:
    return {"max_tokens": max_tokens, "stop": list(stop)}


def test_side_by_side_equals_alone(engine: Engine) -> None:
    rng = np.random.default_rng(1)
    prompts = [
        ([int(token) for token in rng.integers(2, 300, length)], options(limit))
        for length, limit in ((1, 5), (17, 20), (38, 20), (3, 1), (9, 20))
    ]
    found = write_greedily(engine, prompts)
    for (prompt, wanted), ids in zip(prompts, found, strict=True):
        alone = engine.generate_ids(prompt, max_tokens=wanted["max_tokens"])
        # The last position's token is predicted without being run.
        assert ids == alone[: len(ids)]
        assert len(ids) >= min(len(alone), LIMIT - len(prompt))


def test_a_stop_text_ends_one_and_not_the_others(engine: Engine) -> None:
    assert engine.tokenizer is not None
    prompt = [5, 80, 120]
    (free,) = write_greedily(engine, [(prompt, options(12))])
    text = engine.tokenizer.decode(free)
    stop = text[4]
    stopped, other = write_greedily(engine, [(prompt, options(12, stop)), (prompt, options(12))])
    assert other == free
    assert len(stopped) < len(free)
    assert stop in engine.tokenizer.decode(stopped)


def test_nothing_gives_nothing(engine: Engine) -> None:
    assert write_greedily(engine, []) == []
