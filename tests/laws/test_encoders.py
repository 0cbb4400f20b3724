"""Encoders of any shape: the reference's states, whatever is computed beside them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given

from reference.engines import TIERS, TOLERANCE, difference, seeds
from reference.forward import forward
from reference.models import random_checkpoint, random_config
from slimformer.checkpoint import Checkpoint
from slimformer.config import AttentionConfig, ModelConfig
from slimformer.engine import Engine


def encoder(seed: int) -> Checkpoint:
    rng = np.random.default_rng(seed)
    config = random_config(rng, max_layers=3, max_positions=700)
    layers = tuple(
        dataclasses.replace(
            layer,
            attention=dataclasses.replace(layer.attention, window=None)
            if isinstance(layer.attention, AttentionConfig)
            else layer.attention,
        )
        for layer in config.layers
    )
    config = dataclasses.replace(config, layers=layers, causal=False, tied_head=True)
    return random_checkpoint(config, seed)


def states(engine: Engine, texts: list[list[int]]) -> np.ndarray:
    lengths = [len(text) for text in texts]
    hidden = engine.embed([token for text in texts for token in text], lengths)
    return engine.run_layers(hidden, lengths, first=0, last=len(engine.config.layers))[0]


def reference_states(model: Checkpoint, text: list[int]) -> np.ndarray:
    captured: dict[tuple[int, str], np.ndarray] = {}
    config: ModelConfig = model.config
    forward(config, model.read_f32, text, captured=captured)
    return captured[len(config.layers) - 1, "layer_output"]


@pytest.mark.parametrize("tier", TIERS)
@given(seed=seeds)
def test_states_are_those_of_the_reference(tier: str, seed: int) -> None:
    model = encoder(seed)
    if not model.config.layers:
        return
    rng = np.random.default_rng(seed)
    texts = [rng.integers(0, model.config.vocab_size, n).tolist() for n in (1, 140, 30)]
    engine = Engine(model, weights="f32", threads=2, tier=tier)
    expected = np.concatenate([reference_states(model, text) for text in texts])
    assert difference(states(engine, texts), expected) < TOLERANCE


def test_long_batches_are_cut_between_texts() -> None:
    """Five hundred rows pass through the layers together, and a text of more as a whole."""
    model = next(model for model in map(encoder, range(50)) if len(model.config.layers) > 1)
    rng = np.random.default_rng(1)
    texts = [rng.integers(0, model.config.vocab_size, n).tolist() for n in (300, 300, 600, 40)]
    engine = Engine(model, weights="f32", threads=2)
    alone = np.concatenate([states(engine, [text]) for text in texts])
    assert difference(states(engine, texts), alone) < TOLERANCE
