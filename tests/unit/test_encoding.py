from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from reference.models import framing_tokenizer, random_checkpoint, tiny_tokenizer
from slimformer.checkpoint import Checkpoint
from slimformer.checkpoint.families import by_name
from slimformer.checkpoint.fields import Fields
from slimformer.encoding import BATCH_TOKENS, Pooling, batches, pool, to_length_one
from slimformer.engine import Engine
from slimformer.errors import ConfigError, DataError
from slimformer.tokenizer import Tokenizer

TEXTS = ["the river", "light and stone of the engine", "to"]


def encoder(positions: int = 64) -> Checkpoint:
    settings = {
        "vocab_size": 300,
        "hidden_size": 24,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": positions,
        "type_vocab_size": 2,
    }
    config = by_name("bert", "test").from_huggingface(Fields("test", settings))
    return dataclasses.replace(random_checkpoint(config, 1), tokenizer=tiny_tokenizer())


def test_a_text_is_encoded_as_if_alone_and_in_its_place() -> None:
    engine = Engine(encoder(), weights="f32")
    together = engine.encode(TEXTS)
    assert together.shape == (3, 24)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-6)
    for text, vector in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(engine.encode([text])[0], vector, rtol=0, atol=1e-6)
    assert engine.encode([]).shape == (0, 24)


@pytest.mark.parametrize("pooling", ["mean", "max", "cls"])
def test_pooling(pooling: Pooling) -> None:
    hidden = np.random.default_rng(1).standard_normal((7, 3)).astype(np.float32)
    parts = [hidden[:2], hidden[2:3], hidden[3:]]
    expected = {
        "mean": np.stack([part.mean(axis=0) for part in parts]),
        "max": np.stack([part.max(axis=0) for part in parts]),
        "cls": np.stack([part[0] for part in parts]),
    }[pooling]
    np.testing.assert_allclose(pool(hidden, [2, 1, 4], pooling), expected, rtol=1e-6)


def test_a_vector_of_zeros_stays() -> None:
    found = to_length_one(np.array([[3, 4], [0, 0]], np.float32))
    np.testing.assert_allclose(found, [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)


def test_batches_hold_texts_of_like_length_and_every_text_once() -> None:
    lengths = np.random.default_rng(2).integers(1, 700, 60).tolist()
    found = list(batches(lengths))
    assert sorted(index for batch in found for index in batch) == list(range(60))
    assert all(sum(lengths[i] for i in batch) <= BATCH_TOKENS for batch in found)
    flat = [lengths[index] for batch in found for index in batch]
    assert flat == sorted(flat)
    assert list(batches([BATCH_TOKENS + 5])) == [[0]]


def test_long_texts_are_cut_and_keep_what_frames_them() -> None:
    framed = Tokenizer(framing_tokenizer())
    whole = framed.encode_framed("the river <|end|>", 64)
    assert whole[0] == 0
    assert whole[-1] == 1
    assert 1 not in whole[1:-1]
    assert framed.encode_framed("the river <|end|>", 6) == [*whole[:5], 1]
    engine = Engine(encoder(positions=8), weights="f32")
    assert np.isfinite(engine.encode(["the river " * 50])).all()


def test_mistakes_are_named() -> None:
    engine = Engine(encoder(), weights="f32")
    with pytest.raises(ConfigError, match="pooling: expected one of mean, cls, max"):
        engine.encode(TEXTS, pooling="sum")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="text 1: expected at least one token"):
        engine.encode(["to", ""])
    for predict in (
        lambda: engine.score([[1, 2]]),
        lambda: engine.session().extend([1]),
        lambda: engine.generate("the", max_tokens=2),
        lambda: engine.logits(np.zeros((1, 24), np.float32)),
    ):
        with pytest.raises(DataError, match="encodes whole texts and predicts no tokens"):
            predict()
    decoder = random_checkpoint(dataclasses.replace(encoder().config, causal=True), 1)
    with pytest.raises(ConfigError, match="does not encode texts"):
        Engine(decoder).encode(TEXTS)
