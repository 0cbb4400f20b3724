"""Laws 1 and 2: a mask equals surgery; surgery keeps what it should and composes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings

from prune.cases import random_model, random_recipe, seeds
from reference.engines import TOLERANCE
from reference.forward import ReferenceMask, forward
from slimformer.checkpoint.checkpoint import Checkpoint, Tensor
from slimformer.config import LayerConfig
from slimformer.engine import Engine
from slimformer.prune.masks import to_mask
from slimformer.prune.recipe import KeptLayer, Recipe, keep_all
from slimformer.prune.surgery import apply


def assert_same(a: Checkpoint, b: Checkpoint) -> None:
    assert a.config == b.config
    assert a.recipe == b.recipe
    assert a.tokenizer == b.tokenizer
    assert a.fingerprint == b.fingerprint


@given(seeds)
def test_keeping_everything_changes_nothing(seed: int) -> None:
    model = random_model(np.random.default_rng(seed))
    same = apply(model, Recipe.identity(model))
    assert same.config == model.config
    assert same.tensors == model.tensors
    assert same.fingerprint == model.fingerprint
    assert_same(apply(same, Recipe.identity(same)), same)


@given(seeds)
def test_surgery_composes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = random_model(rng)
    a = random_recipe(rng, model)
    once = apply(model, a)
    b = random_recipe(rng, once)
    assert_same(apply(once, b), apply(model, a.then(b)))


@given(seeds)
def test_surgery_equals_the_reference_with_a_mask(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = random_model(rng)
    recipe = random_recipe(rng, model, masked=True)
    mask = ReferenceMask(**dataclasses.asdict(to_mask(recipe, model.config)))
    slim = apply(model, recipe)
    tokens = rng.integers(0, model.config.vocab_size, 20).tolist()
    masked = forward(model.config, model.read_f32, tokens, mask)
    cut = forward(slim.config, slim.read_f32, tokens)
    # Both in float64; only the order of sums differs.
    np.testing.assert_allclose(cut, masked, rtol=1e-9, atol=1e-9 * np.abs(masked).max())


@settings(max_examples=25)
@given(seeds)
def test_surgery_equals_the_engine_with_a_mask(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = random_model(rng)
    recipe = random_recipe(rng, model, masked=True)
    tokens = rng.integers(0, model.config.vocab_size, 20)
    engine = Engine(model, weights="f32", threads=2)
    masked = engine.forward([engine.session(to_mask(recipe, model.config))], [tokens], logits="all")
    small = Engine(apply(model, recipe), weights="f32", threads=2)
    cut = small.forward([small.session()], [tokens], logits="all")
    assert np.abs(cut - masked).max() <= TOLERANCE * np.abs(masked).max()


@settings(max_examples=25)
@given(seeds)
def test_without_layers_and_sub_blocks_a_mask_gives_the_same_bits(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = random_model(rng)
    layers = []
    for index, layer in enumerate(model.config.layers):
        whole = keep_all(index, layer)
        kept = KeptLayer(
            index,
            whole.attention if rng.random() < 0.6 else None,
            whole.ffn if rng.random() < 0.6 else None,
        )
        if kept == whole or kept.attention is not None or kept.ffn is not None:
            layers.append(kept)
    recipe = Recipe(model.name, model.fingerprint, tuple(layers))
    tokens = rng.integers(0, model.config.vocab_size, 20)
    engine = Engine(model, threads=2)
    masked = engine.forward([engine.session(to_mask(recipe, model.config))], [tokens], logits="all")
    small = Engine(apply(model, recipe), threads=2)
    cut = small.forward([small.session()], [tokens], logits="all")
    np.testing.assert_array_equal(cut, masked)


def test_surgery_reads_nothing_before_it_is_asked() -> None:
    rng = np.random.default_rng(3)
    model = random_model(rng, ragged=False)
    recipe = random_recipe(rng, model)

    def refuse() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        raise AssertionError("a tensor was read")

    closed = dataclasses.replace(
        model,
        tensors={
            name: Tensor(tensor.shape, tensor.dtype, refuse)
            for name, tensor in model.tensors.items()
        },
    )
    closed.__dict__["fingerprint"] = model.fingerprint
    assert apply(closed, recipe).config == apply(model, recipe).config


def test_an_emptied_layer_is_left_out() -> None:
    rng = np.random.default_rng(5)
    model = random_model(rng, ragged=False)
    slim = apply(model, Recipe(model.name, model.fingerprint, ()))
    assert slim.config.layers == ()
    assert LayerConfig(None, None) not in slim.config.layers
    from slimformer.errors import RecipeError

    hollow = Recipe(model.name, model.fingerprint, (KeptLayer(0, None, None),))
    with pytest.raises(RecipeError, match="keeps nothing"):
        apply(model, hollow)
