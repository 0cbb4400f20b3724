"""A model without some channels says what the whole model says with nothing in them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings

from prune.cases import random_model, random_units, seeds, silenced
from reference.engines import TIERS, TOLERANCE, difference
from slimformer.checkpoint import Checkpoint, load, save
from slimformer.engine import Engine
from slimformer.prune import Recipe, apply


def narrowed(model: Checkpoint, channels: tuple[int, ...]) -> Checkpoint:
    return apply(model, dataclasses.replace(Recipe.identity(model), channels=channels))


@pytest.mark.parametrize("tier", TIERS)
@settings(max_examples=10)
@given(seed=seeds)
def test_removed_channels_are_silent_channels(tier: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = random_model(rng)
    assume(model.config.norm == "rms")
    channels = random_units(rng, model.config.n_channels)
    tokens = rng.integers(0, model.config.vocab_size, 20)
    engines = [
        Engine(one, weights="f32", kv="f32", tier=tier, threads=2)
        for one in (silenced(model, channels), narrowed(model, channels))
    ]
    silent, narrow = (
        engine.forward([engine.session()], [tokens], logits="all") for engine in engines
    )
    assert difference(narrow, silent) < TOLERANCE


def test_a_narrow_model_is_saved_and_loaded(tmp_path: Path) -> None:
    model = random_model(np.random.default_rng(2), ragged=False)
    narrow = narrowed(model, tuple(range(1, model.config.n_channels)))
    save(narrow, tmp_path / "narrow")
    again = load(tmp_path / "narrow")
    assert again.fingerprint == narrow.fingerprint
    assert again.recipe == narrow.recipe


@pytest.mark.model
def test_bytes_go_with_the_channels(real_model: Checkpoint) -> None:
    narrow = narrowed(real_model, tuple(range(512)))
    assert narrow.config.parameters() == pytest.approx(
        real_model.config.parameters() * 512 / 576, rel=1e-4
    )
    bytes_of = [Engine(one, weights="bf16").weight_bytes for one in (real_model, narrow)]
    assert bytes_of[1] == pytest.approx(bytes_of[0] * 512 / 576, rel=2e-3)
