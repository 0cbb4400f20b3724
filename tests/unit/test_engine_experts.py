"""Routed FFNs at the edges: ties, few experts, masks that name what is not there."""

from __future__ import annotations

import numpy as np
import pytest

from reference.engines import TIERS, TOLERANCE, difference
from reference.forward import ReferenceMask, forward
from reference.models import random_checkpoint
from slimformer.checkpoint import Checkpoint
from slimformer.config import FfnConfig, LayerConfig, ModelConfig, RoutedFfnConfig, SoftmaxOver
from slimformer.engine import Engine, Mask
from slimformer.errors import ConfigError

TOKENS = list(range(40))


def model(*ffns: RoutedFfnConfig | FfnConfig) -> Checkpoint:
    layers = tuple(LayerConfig(None, ffn) for ffn in ffns)
    return random_checkpoint(ModelConfig("llama", 50, 12, 12, 1e-5, True, 64, layers), 1)


def logits(checkpoint: Checkpoint, mask: Mask | None = None, tier: str | None = None) -> np.ndarray:
    engine = Engine(checkpoint, weights="f32", tier=tier)
    return np.asarray(engine.forward([engine.session(mask)], [TOKENS], logits="all"))


@pytest.mark.parametrize("tier", TIERS)
def test_of_equal_experts_the_first_run(tier: str) -> None:
    checkpoint = model(RoutedFfnConfig((9, 20, 4, 7), top_k=2))
    name = "layers.0.ffn.router.weight"
    even = checkpoint.with_tensors({name: np.zeros((4, 12), np.float32)})
    found = logits(even, tier=tier)
    assert difference(found, forward(even.config, even.read_f32, TOKENS)) < TOLERANCE
    np.testing.assert_array_equal(found, logits(even, Mask(experts={0: (1, 0)}), tier=tier))


@pytest.mark.parametrize("softmax_over", ["experts", "chosen"])
def test_with_fewer_experts_than_a_token_runs_all_run(softmax_over: SoftmaxOver) -> None:
    ffn = RoutedFfnConfig((9, 20, 4, 8), top_k=3, softmax_over=softmax_over)
    checkpoint = model(ffn)
    kept = {0: (1, 3)}
    expected = forward(checkpoint.config, checkpoint.read_f32, TOKENS, ReferenceMask(experts=kept))
    assert difference(logits(checkpoint, Mask(experts=kept)), expected) < TOLERANCE


def test_routers_stay_float32() -> None:
    checkpoint = model(RoutedFfnConfig((9, 20, 4), top_k=1))
    sizes = {
        weights: Engine(checkpoint, weights=weights).weight_bytes for weights in ("f32", "int4")
    }
    assert sizes["int4"] < sizes["f32"]
    for weights in ("bf16", "int8", "int4"):
        engine = Engine(checkpoint, weights=weights)
        rows = engine.embed(TOKENS)
        routed = engine.run_layers(rows, [40], first=0, last=1, capture=[(0, "ffn_experts")])[1]
        runs = routed[0, "ffn_experts"] > 0
        norm = checkpoint.read_f32("layers.0.ffn.norm.weight")
        normed = rows / np.sqrt(np.mean(rows**2, axis=1, keepdims=True) + 1e-5) * norm
        router = checkpoint.read_f32("layers.0.ffn.router.weight")
        np.testing.assert_array_equal(runs.argmax(axis=1), (normed @ router.T).argmax(axis=1))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (Mask(experts={0: ()}), "keeps no expert"),
        (Mask(experts={0: (0, 3)}), "expert 3 does not exist"),
        (Mask(experts={0: (0, 0)}), "listed twice"),
        (Mask(experts={1: (0,)}), "layer 1 has no experts"),
        (Mask(experts={2: (0,)}), "layer 2 does not exist"),
        (Mask(expert_neurons={0: {0: ()}}), "keeps no neuron"),
        (Mask(expert_neurons={0: {0: (9,)}}), "expert 0: neuron 9 does not exist"),
        (Mask(expert_neurons={0: {5: (0,)}}), "expert 5 does not exist"),
        (Mask(expert_neurons={1: {0: (0,)}}), "layer 1 has no experts"),
        (Mask(neurons={0: (0,)}), "has no FFN whose neurons"),
    ],
)
def test_a_mask_must_fit(mask: Mask, message: str) -> None:
    engine = Engine(model(RoutedFfnConfig((9, 20, 4), top_k=1), FfnConfig(5)))
    with pytest.raises(ConfigError, match=message):
        engine.session(mask)


@pytest.mark.parametrize(
    ("experts", "top_k", "message"),
    [
        ((), 1, "expected 1 to 4096"),
        ((3, 0), 1, "neurons of an expert"),
        ((3,), 0, "top_k"),
        ((3,), 2, "at most the 1 experts"),
    ],
)
def test_a_shape_must_be_one(experts: tuple[int, ...], top_k: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RoutedFfnConfig(experts, top_k)
