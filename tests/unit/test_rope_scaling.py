"""Scalings of the rotation: read, written, kept in folders of our own, and run."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reference.models import random_checkpoint
from slimformer.checkpoint import load, native, save
from slimformer.checkpoint.families import by_name
from slimformer.checkpoint.fields import Fields
from slimformer.config import (
    AttentionConfig,
    DynamicRopeScaling,
    FfnConfig,
    KeptPairs,
    LayerConfig,
    LinearRopeScaling,
    Llama3RopeScaling,
    LongRopeScaling,
    ModelConfig,
    RopeConfig,
    RopeScaling,
    YarnRopeScaling,
)
from slimformer.config_settings import all_settings
from slimformer.engine import Engine
from slimformer.errors import ConfigError, ContextLengthError

DIM, USUAL = 8, 12
LONG = LongRopeScaling((1.0, 1.0, 1.25, 1.5), (2.0, 3.0, 4.0, 8.0), USUAL, 1.25)
YARN_GROWTH = float(np.float32(0.1 * math.log(4) + 1))
ORIGINAL = "original_max_position_embeddings"
FACTORS = {"short_factor": LONG.short_factors, "long_factor": LONG.long_factors}
LISTS = {name: list(values) for name, values in FACTORS.items()}

SETTINGS: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}


def model(scaling: RopeScaling | None, *, kv_heads: int = 2) -> ModelConfig:
    attention = AttentionConfig(
        n_heads=2,
        n_kv_heads=kv_heads,
        head_dim=DIM,
        value_dim=DIM,
        q_to_kv=(0, kv_heads - 1),
        scale=DIM**-0.5,
        rope=RopeConfig(DIM, scaling=scaling),
    )
    return ModelConfig(
        family="llama",
        vocab_size=50,
        n_channels=16,
        norm_divisor=16,
        norm_eps=1e-6,
        tied_head=False,
        max_positions=64,
        layers=(LayerConfig(attention, FfnConfig(8)),) * 2,
    )


@pytest.mark.parametrize(
    ("settings", "scaling"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, DynamicRopeScaling(2.0, 64)),
        ({"type": "yarn", "factor": 4.0}, YarnRopeScaling(4.0, 64, YARN_GROWTH)),
        ({"type": "yarn", ORIGINAL: 16}, YarnRopeScaling(4.0, 16, YARN_GROWTH)),
        ({"type": "yarn", "factor": 1.0, ORIGINAL: 8}, YarnRopeScaling(1.0, 8, 1.0)),
        (
            {"type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 0.7},
            YarnRopeScaling(4.0, 64, 1.0),
        ),
        (
            {"type": "yarn", "factor": 4.0, "beta_fast": 8, "beta_slow": 2, "truncate": False}
            | {"attention_factor": 1.5},
            YarnRopeScaling(4.0, 64, 1.5, 8.0, 2.0, truncated=False),
        ),
        (
            {"type": "longrope", **LISTS, ORIGINAL: 4, "factor": 16},
            dataclasses.replace(
                LONG, original_max_positions=4, attention_factor=float(np.float32(3**0.5))
            ),
        ),
        ({"type": "longrope", **LISTS, ORIGINAL: USUAL, "attention_factor": 1.25}, LONG),
    ],
)
def test_settings_are_read_and_written(settings: dict[str, Any], scaling: RopeScaling) -> None:
    family = by_name("llama", "test")
    config = family.from_huggingface(Fields("test", {**SETTINGS, "rope_scaling": settings}))
    assert config == model(scaling)
    written = family.to_huggingface(config)
    assert written is not None
    assert family.from_huggingface(Fields("test", written)) == config


def test_phi3_has_its_own_names_and_place() -> None:
    rope = {"type": "su", **LISTS, "attention_factor": 1.25}
    settings = {**SETTINGS, "rope_scaling": rope, ORIGINAL: USUAL}
    family = by_name("phi3", "test")
    config = family.from_huggingface(Fields("test", settings))
    attention = config.layers[0].attention
    assert isinstance(attention, AttentionConfig)
    assert attention.rope is not None
    assert attention.rope.scaling == LONG
    written = family.to_huggingface(config)
    assert written is not None
    assert written[ORIGINAL] == USUAL


@pytest.mark.parametrize(
    "scaling", [DynamicRopeScaling(2.0, 64), YarnRopeScaling(4.0, 16, 1.1, 8.0, 2.0), LONG]
)
def test_ragged_models_keep_them(scaling: RopeScaling, tmp_path: Path) -> None:
    config = model(scaling)
    config = dataclasses.replace(config, layers=(config.layers[0], LayerConfig(None, FfnConfig(3))))
    assert native.describe(config)["model_type"] == native.MODEL_TYPE
    checkpoint = random_checkpoint(config, 1)
    save(checkpoint, tmp_path / "model")
    assert load(tmp_path / "model").config == config
    assert load(tmp_path / "model").fingerprint == checkpoint.fingerprint


def test_scalings_are_part_of_the_fingerprint() -> None:
    scalings = (None, DynamicRopeScaling(2.0, 64), YarnRopeScaling(4.0, 16, 1.1), LONG)
    assert len({random_checkpoint(model(s), 1).fingerprint for s in scalings}) == len(scalings)


def test_yarn_keeps_fast_pairs_and_stretches_slow_ones() -> None:
    plain = RopeConfig(64).inverse_frequencies()
    rope = RopeConfig(64, scaling=YarnRopeScaling(8.0, 4096, 1.2))
    ratio = plain / rope.inverse_frequencies()
    turns = 4096 * plain / (2 * math.pi)
    np.testing.assert_allclose(ratio[turns > 40], 1, rtol=1e-6)
    np.testing.assert_allclose(ratio[turns < 0.8], 8, rtol=1e-6)
    assert np.all(np.diff(ratio) >= -1e-6)
    assert rope.amplitude == 1.2


def test_dynamic_changes_nothing_within_the_models_limit() -> None:
    dynamic = RopeConfig(8, scaling=DynamicRopeScaling(4.0, 100))
    np.testing.assert_array_equal(
        dynamic.inverse_frequencies(100), RopeConfig(8).inverse_frequencies()
    )


def test_long_sequences_turn_at_frequencies_of_their_own() -> None:
    rope, plain = RopeConfig(DIM, scaling=LONG), RopeConfig(DIM).inverse_frequencies()
    for length, factors in ((USUAL, LONG.short_factors), (USUAL + 1, LONG.long_factors)):
        np.testing.assert_allclose(rope.inverse_frequencies(length), plain / factors, rtol=1e-6)
    with pytest.raises(ConfigError, match="short_factors: expected 5, one a pair, found 4"):
        RopeConfig(10, scaling=LONG)


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        LinearRopeScaling(2.0),
        DynamicRopeScaling(2.0, 64),
        Llama3RopeScaling(8.0, 1.0, 4.0, 64),
        YarnRopeScaling(4.0, 16, 1.1),
        LONG,
    ],
)
def test_pairs_that_are_left_turn_as_before(scaling: RopeScaling | None) -> None:
    rope = RopeConfig(DIM, scaling=scaling)
    fewer = rope.only((0, 2, 3)).only((1, 2))
    assert (fewer.rotary_dim, fewer.kept) == (4, KeptPairs(DIM, (2, 3)))
    for length in (1, USUAL + 1):
        expected = rope.inverse_frequencies(length)[2:]
        np.testing.assert_array_equal(fewer.inverse_frequencies(length), expected)
    assert (fewer.amplitude, fewer.usual_length) == (rope.amplitude, rope.usual_length)
    assert fewer.trained() == rope == rope.only((0, 1, 2, 3))


def test_only_what_has_lost_pairs_says_so(tmp_path: Path) -> None:
    whole = model(None)
    layer = whole.layers[0]
    attention = layer.attention
    assert isinstance(attention, AttentionConfig)
    rope = attention.rope
    assert rope is not None
    assert set(all_settings(whole)["layers"][0]["attention"]["rope"]) == {
        *("rotary_dim", "theta", "scaling")
    }

    def fewer(*pairs: int) -> ModelConfig:
        narrow = dataclasses.replace(attention, head_dim=4, rope=rope.only(pairs))
        cut = dataclasses.replace(layer, attention=narrow)
        return dataclasses.replace(whole, layers=(cut,) * len(whole.layers))

    assert by_name("llama", "test").to_huggingface(fewer(1, 3)) is None
    checkpoint = random_checkpoint(fewer(1, 3), 1)
    others = dataclasses.replace(checkpoint, config=fewer(0, 3))
    assert others.fingerprint != checkpoint.fingerprint
    save(checkpoint, tmp_path / "model")
    assert load(tmp_path / "model").config == checkpoint.config
    assert load(tmp_path / "model").fingerprint == checkpoint.fingerprint


def test_sessions_are_for_short_or_for_long_sequences() -> None:
    checkpoint = random_checkpoint(model(LONG), 3)
    engine = Engine(checkpoint, weights="f32")
    tokens = [int(token) for token in np.random.default_rng(1).integers(0, 50, USUAL + 4)]
    assert engine.config.usual_length == engine.session().capacity == USUAL
    with pytest.raises(ContextLengthError):
        engine.session().extend(tokens)
    short, long = tokens[:USUAL], engine.session_for(len(tokens))
    assert long.capacity == 64
    as_long = long.extend(short)
    as_short = engine.session_for(USUAL).extend(short)
    assert np.abs(as_long - as_short).max() > 1e-3
    # the same choice by whoever gives whole sequences
    whole = engine.run_layers(engine.embed(tokens + short), [len(tokens), USUAL], first=0, last=2)[
        0
    ]
    np.testing.assert_allclose(engine.logits(whole[-1:])[0], as_short, atol=1e-5)
    np.testing.assert_allclose(
        engine.logits(whole[len(tokens) - 1 : len(tokens)])[0],
        long.extend(tokens[USUAL:]),
        atol=1e-5,
    )
    both = engine.score([tokens, short])
    np.testing.assert_allclose(both[1], engine.session().score(short), atol=1e-5)
    np.testing.assert_allclose(both[0], engine.session_for(64).score(tokens), atol=1e-5)


def test_a_text_that_outgrows_its_session_goes_on_from_the_beginning() -> None:
    engine = Engine(random_checkpoint(model(LONG), 3), weights="f32")
    prompt = [int(token) for token in np.random.default_rng(1).integers(0, 50, USUAL - 3)]
    written = engine.generate_ids(prompt, max_tokens=9)
    assert len(written) == 9
    for count in range(9):
        history = prompt + written[:count]
        expected = engine.session_for(len(history)).extend(history)
        assert written[count] == int(np.argmax(expected))
    assert len(engine.generate_ids(prompt, max_tokens=1000)) == 64 - len(prompt) + 1
