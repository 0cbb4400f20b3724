"""Balanced models: the same before rounding, closer to themselves after it."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings

from prune.cases import random_model, routed_model, seeds
from reference.engines import TOLERANCE
from reference.models import random_checkpoint
from slimformer.checkpoint import Checkpoint
from slimformer.config import AttentionConfig, FfnConfig, LayerConfig, ModelConfig, RopeConfig
from slimformer.engine import Engine, Weights
from slimformer.errors import DataError
from slimformer.prune import balance

TEXTS = ["the light of the river and the stone in the engine to layer " * 60]

Logits = npt.NDArray[np.float32]


def logits(model: Checkpoint, weights: Weights) -> Logits:
    engine = Engine(model, weights=weights, threads=1)
    return engine.forward([engine.session()], [list(range(2, 60))], logits="all")


def difference(a: Logits, b: Logits) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


def loud(model: Checkpoint) -> Checkpoint:
    """The same model, some channels of its norms loud and what reads them quiet."""
    factors = np.where(np.arange(model.config.n_channels) % 16 == 3, 32, 1).astype(np.float32)
    changed = {}
    for name in model.tensors:
        if name.endswith((".norm.weight", ".norm.bias")):
            changed[name] = model.read_f32(name) * factors
        elif name.endswith(("q.weight", "k.weight", "v.weight", "gate.weight", "up.weight")):
            changed[name] = model.read_f32(name) / factors
    return model.with_tensors(changed)


def plain_config() -> ModelConfig:
    attention = AttentionConfig(4, 2, 16, 16, (0, 0, 1, 1), 0.25, RopeConfig(16))
    layer = LayerConfig(attention, FfnConfig(128))
    return ModelConfig("llama", 300, 128, 128, 1e-5, True, 512, (layer,) * 3)


def plain_model() -> Checkpoint:
    return random_checkpoint(plain_config(), 3, tokenizer=True)


@settings(max_examples=25)
@given(seed=seeds)
def test_a_balanced_model_says_the_same_bit_for_bit(seed: int) -> None:
    model = random_model(np.random.default_rng(seed))
    balanced = balance(model, calibration=TEXTS, tokens=256, threads=1)
    assert balanced.config == model.config
    if model.config.norm_offset == 0:
        for weights in ("f32", "bf16"):
            np.testing.assert_array_equal(logits(balanced, weights), logits(model, weights))
    else:
        assert difference(logits(balanced, "f32"), logits(model, "f32")) < TOLERANCE


@pytest.mark.parametrize("norm_offset", [0.0, 1.0])
@pytest.mark.parametrize("tied_head", [False, True])
def test_offsets_and_heads(norm_offset: float, tied_head: bool) -> None:
    config = dataclasses.replace(plain_config(), norm_offset=norm_offset, tied_head=tied_head)
    model = random_checkpoint(config, 3, tokenizer=True)
    balanced = balance(model, calibration=TEXTS, tokens=256, threads=1)
    assert difference(logits(balanced, "f32"), logits(model, "f32")) < TOLERANCE
    same = balanced.read("final_norm.weight") is model.read("final_norm.weight")
    assert same == tied_head


def test_layer_norm_with_bias() -> None:
    attention = AttentionConfig(2, 2, 16, 16, (0, 1), 0.25, RopeConfig(16), qkv_bias=True)
    layer = LayerConfig(attention, FfnConfig(64, bias=True), parallel=True)
    config = ModelConfig("gptneox", 300, 64, 64, 1e-5, False, 512, (layer,) * 2, norm="layer")
    model = random_checkpoint(config, 3, tokenizer=True)
    balanced = balance(model, calibration=TEXTS, tokens=256, threads=1)
    np.testing.assert_array_equal(logits(balanced, "f32"), logits(model, "f32"))


def test_experts_and_their_router() -> None:
    model = routed_model()
    balanced = balance(model, calibration=TEXTS, tokens=256, threads=1)
    np.testing.assert_array_equal(logits(balanced, "f32"), logits(model, "f32"))


def test_float16_keeps_what_is_small() -> None:
    model = random_checkpoint(plain_config(), 3, tokenizer=True, dtype="f16")
    balanced = balance(model, calibration=TEXTS, tokens=256, threads=1)
    np.testing.assert_array_equal(logits(balanced, "f32"), logits(model, "f32"))


def test_loud_channels_are_evened_out_for_int8() -> None:
    model = loud(plain_model())
    exact = logits(model, "f32")

    def error(of: Checkpoint) -> float:
        return float(np.square(logits(of, "int8") - exact).mean())

    balanced = balance(model, calibration=TEXTS, tokens=256, threads=1)
    assert error(balanced) < error(model) / 4


def test_without_text_the_model_writes_some() -> None:
    model = loud(plain_model())
    balanced = balance(model, tokens=256, threads=1)
    assert any(balanced.tensors[name] is not model.tensors[name] for name in model.tensors)
    np.testing.assert_array_equal(logits(balanced, "f32"), logits(model, "f32"))


def test_text_that_cannot_be_used() -> None:
    with pytest.raises(DataError):
        balance(plain_model(), calibration=[])
