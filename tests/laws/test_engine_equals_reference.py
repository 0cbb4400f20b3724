"""Law 5: the engine agrees with the numpy reference on any shape, on every tier."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference.engines import (
    TIERS,
    TOLERANCE,
    Weights,
    agree,
    difference,
    packed_read,
    random_case,
    seeds,
)
from reference.forward import forward
from reference.models import random_checkpoint
from slimformer.config import (
    AttentionConfig,
    FfnConfig,
    LayerConfig,
    LinkConfig,
    ModelConfig,
    RopeConfig,
    RoutedFfnConfig,
)
from slimformer.engine import Engine, Mask


@pytest.mark.parametrize("tier", TIERS)
@given(seed=seeds, weights=st.sampled_from(["f32", "bf16", "int8", "int4"]))
def test_logits_of_random_ragged_models(tier: str, seed: int, weights: Weights) -> None:
    case = random_case(seed)
    engine = case.engine(weights=weights, tier=tier)
    logits = engine.forward([engine.session()], [case.tokens], logits="all")
    assert agree(engine, logits, case.reference(weights))


@given(seed=seeds, weights=st.sampled_from(["f32", "bf16", "int8", "int4"]))
def test_scores_are_log_probabilities(seed: int, weights: Weights) -> None:
    case = random_case(seed)
    logits = case.reference(weights)[:-1]
    largest = logits.max(axis=-1, keepdims=True) if len(logits) else logits
    total = largest[:, 0] + np.log(np.exp(logits - largest).sum(axis=-1))
    expected = logits[np.arange(len(logits)), case.tokens[1:]] - total
    engine = case.engine(weights=weights)
    (scores,) = engine.score([case.tokens])
    assert scores.shape == expected.shape
    assert agree(engine, scores, expected)


def every_shape() -> ModelConfig:
    """One model with everything that a random one may happen not to have."""
    odd = AttentionConfig(
        n_heads=5,
        n_kv_heads=2,
        head_dim=10,
        value_dim=7,
        q_to_kv=(1, 0, 1, 1, 0),
        scale=0.31,
        rope=RopeConfig(rotary_dim=6),
        qkv_bias=True,
        output_bias=True,
    )
    single = AttentionConfig(1, 1, 2, 1, (0,), 1.0, rope=None)
    layers = (
        LayerConfig(odd, FfnConfig(37, bias=True)),
        LayerConfig(None, FfnConfig(1)),
        LayerConfig(single, None),
        LayerConfig(None, None),
        LayerConfig(LinkConfig("full"), LinkConfig("low_rank", rank=3)),
        LayerConfig(LinkConfig("diagonal"), FfnConfig(5)),
        LayerConfig(odd, LinkConfig("diagonal")),
        LayerConfig(LinkConfig("constant"), LinkConfig("constant")),
        LayerConfig(odd, RoutedFfnConfig((37, 1, 5, 70, 16), top_k=2)),
        LayerConfig(None, RoutedFfnConfig((3, 8), top_k=2, softmax_over="experts")),
    )
    return ModelConfig("llama", 101, 23, 31, 1e-5, False, 300, layers)


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("weights", ["f32", "bf16", "int8", "int4"])
def test_everything_at_once(tier: str, weights: Weights) -> None:
    config = every_shape()
    checkpoint = random_checkpoint(config, 1)
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, 131)
    engine = Engine(checkpoint, weights=weights, tier=tier, kv="f32")
    logits = engine.forward([engine.session()], [tokens], logits="all")
    expected = forward(config, packed_read(checkpoint, weights), tokens.tolist())
    assert agree(engine, logits, expected)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_weights_of_every_type_are_read_exactly(dtype: str) -> None:
    config = every_shape()
    checkpoint = random_checkpoint(config, 2, dtype=dtype)
    tokens = list(range(20))
    engine = Engine(checkpoint, weights="f32")
    logits = engine.forward([engine.session()], [tokens], logits="all")
    expected = forward(config, checkpoint.read_f32, tokens)
    assert difference(logits, expected) < TOLERANCE


def test_a_model_without_layers() -> None:
    config = ModelConfig("llama", 50, 8, 8, 1e-5, True, 20, ())
    checkpoint = random_checkpoint(config, 3)
    engine = Engine(checkpoint, weights="f32")
    logits = engine.forward([engine.session()], [[3, 4]], logits="all")
    assert difference(logits, forward(config, checkpoint.read_f32, [3, 4])) < TOLERANCE


@given(seed=seeds)
def test_masks_do_what_the_reference_does(seed: int) -> None:
    case = random_case(seed, max_tokens=70)
    mask = random_mask(case.checkpoint.config, case.rng)
    engine = case.engine()
    logits = engine.forward([engine.session(mask)], [case.tokens], logits="all")
    assert difference(logits, case.reference(mask=mask)) < TOLERANCE


def random_mask(config: ModelConfig, rng: np.random.Generator) -> Mask:
    def some(count: int) -> tuple[int, ...]:
        kept = rng.permutation(count)[: int(rng.integers(1, count + 1))]
        return tuple(int(index) for index in kept)

    layers = range(len(config.layers))
    heads, neurons = {}, {}
    experts: dict[int, tuple[int, ...]] = {}
    expert_neurons: dict[int, dict[int, tuple[int, ...]]] = {}
    for index, layer in enumerate(config.layers):
        if isinstance(layer.attention, AttentionConfig) and rng.random() < 0.5:
            heads[index] = some(layer.attention.n_heads)
        if isinstance(layer.ffn, FfnConfig) and rng.random() < 0.5:
            neurons[index] = some(layer.ffn.n_neurons)
        if isinstance(layer.ffn, RoutedFfnConfig):
            experts[index] = some(len(layer.ffn.experts))
            expert_neurons[index] = {e: some(layer.ffn.experts[e]) for e in experts[index][:2]}
    return Mask(
        skip_attention=tuple(i for i in layers if rng.random() < 0.2),
        skip_ffn=tuple(i for i in layers if rng.random() < 0.2),
        exit_after=int(rng.integers(len(layers))) if len(layers) and rng.random() < 0.3 else None,
        heads=heads,
        neurons=neurons,
        experts=experts,
        expert_neurons=expert_neurons,
    )
