"""Generation on a small model: what comes, when it stops, what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from reference.models import random_checkpoint, tiny_tokenizer
from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.config import AttentionConfig, FfnConfig, LayerConfig, ModelConfig, RopeConfig
from slimformer.engine import Engine, Mask
from slimformer.errors import ConfigError, ContextLengthError, DataError

PROMPT = "the river and the stone"


def checkpoint(**changes: Any) -> Checkpoint:
    attention = AttentionConfig(4, 2, 8, 8, (0, 0, 1, 1), 0.3, RopeConfig(8))
    layer = LayerConfig(attention, FfnConfig(40))
    config = ModelConfig("llama", 300, 16, 16, 1e-5, False, 100, (layer, layer))
    model = random_checkpoint(config, 3, tokenizer=True)
    return dataclasses.replace(model, **changes)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(checkpoint(), weights="f32", threads=1)


def greedy(engine: Engine, ids: list[int], count: int, mask: Mask | None = None) -> list[int]:
    """The likeliest tokens, each found by feeding everything before it anew."""
    new: list[int] = []
    for _ in range(count):
        token = int(np.argmax(engine.session(mask).extend(ids + new)))
        if token == 1:  # the stop token
            break
        new.append(token)
    return new


def test_greedy_takes_the_likeliest_tokens(engine: Engine) -> None:
    ids = engine.prompt_ids(PROMPT)
    assert engine.generate_ids(ids, max_tokens=20) == greedy(engine, ids, 20)
    mask = Mask(skip_ffn=(0,))
    assert engine.generate_ids(ids, max_tokens=20, mask=mask) == greedy(engine, ids, 20, mask)


def test_streamed_pieces_are_the_text(engine: Engine) -> None:
    options: dict[str, Any] = {"max_tokens": 40, "temperature": 1.5}
    for seed in range(5):
        whole = engine.generate(PROMPT, seed=seed, **options)
        pieces = list(engine.stream(PROMPT, seed=seed, **options))
        assert "".join(pieces) == whole
        assert "" not in pieces


def test_a_seed_fixes_the_text(engine: Engine) -> None:
    texts = [engine.generate(PROMPT, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_a_stop_text_is_where_the_text_ends(engine: Engine) -> None:
    whole = engine.generate(PROMPT, max_tokens=30, temperature=1.0)
    for start in range(0, len(whole) - 3, 4):
        stop = whole[start : start + 3]
        cut = engine.generate(PROMPT, max_tokens=30, temperature=1.0, stop=[stop])
        assert cut == whole[: whole.index(stop)]


def test_the_stop_token_ends_and_is_not_shown() -> None:
    tokens = Engine(checkpoint(), weights="f32", threads=1).generate_ids([5, 6], max_tokens=10)
    stopping = dataclasses.replace(tiny_tokenizer(), stop_ids=(tokens[3],))
    engine = Engine(checkpoint(tokenizer=stopping), weights="f32", threads=1)
    assert engine.generate_ids([5, 6], max_tokens=10) == tokens[: tokens.index(tokens[3])]


def test_the_context_may_be_filled_and_no_more(engine: Engine) -> None:
    model = Engine(checkpoint(tokenizer=None), weights="f32", threads=1)
    # The last token is chosen, but there is no room to feed it.
    assert len(model.generate_ids([5] * 90, max_tokens=10**12)) == 11
    assert len(model.generate_ids([5] * 100, max_tokens=5)) == 1
    with pytest.raises(ContextLengthError):
        model.generate_ids([5] * 101)
    with pytest.raises(DataError, match="tokenizer"):
        model.generate(PROMPT)


def test_chat_uses_the_template(engine: Engine) -> None:
    ids = engine.prompt_ids("the stone", chat=True)
    assert ids[0] == 0
    text = engine.generate("the stone", chat=True, max_tokens=8)
    assert text == engine.tokenizer.decode(engine.generate_ids(ids, max_tokens=8))  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": -1},
        {"temperature": -0.5},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_k": 1 << 40},
        {"top_p": 0.0},
        {"min_p": 1.5},
        {"repetition_penalty": -1.0},
        {"seed": -1},
        {"seed": 1 << 64},
        {"mask": Mask(skip_ffn=(9,))},
    ],
    ids=str,
)
def test_options_out_of_range(engine: Engine, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        engine.generate(PROMPT, **options)
    with pytest.raises(ConfigError):
        engine.stream(PROMPT, **options)


@pytest.mark.parametrize("prompt", [[], np.empty(0, dtype=np.int64)])
def test_an_empty_prompt(engine: Engine, prompt: Any) -> None:
    with pytest.raises(DataError, match="prompt"):
        engine.generate_ids(prompt)
    with pytest.raises(DataError, match="prompt"):
        engine.generate("")


@pytest.mark.parametrize("tokens", [[1.5], [[1, 2]], ["a"], [None]], ids=str)
def test_tokens_that_are_no_tokens(engine: Engine, tokens: Any) -> None:
    with pytest.raises(DataError, match="tokens"):
        engine.session().extend(tokens)
