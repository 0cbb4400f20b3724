"""Law 1: running with a mask equals running the model after surgery."""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from reference.engines import TOLERANCE, Case, difference, random_case, seeds
from slimformer.config import AttentionConfig, FfnConfig, RoutedFfnConfig
from slimformer.engine import Engine, Mask
from slimformer.prune import surgery
from slimformer.prune.masks import to_mask
from slimformer.prune.recipe import (
    KeptExperts,
    KeptFfn,
    KeptLayer,
    Recipe,
    keep_all,
    keep_experts,
    keep_heads,
)


def some(rng: np.random.Generator, count: int) -> tuple[int, ...]:
    kept = rng.permutation(count)[: int(rng.integers(1, count + 1))]
    return tuple(int(index) for index in np.sort(kept))


def recipe_of(case: Case, *, units: bool) -> Recipe:
    """Removes layers, sub-blocks and experts at random and, if asked, single heads and neurons."""
    rng = case.rng
    layers = []
    for index, layer in enumerate(case.checkpoint.config.layers):
        kept = keep_all(index, layer)
        attention = None if rng.random() < 0.3 else kept.attention
        ffn = None if rng.random() < 0.3 else kept.ffn
        if units and attention is not None and isinstance(layer.attention, AttentionConfig):
            heads = keep_heads(layer.attention, some(rng, layer.attention.n_heads))
            assert heads is not None
            values = some(rng, layer.attention.value_dim) if rng.random() < 0.5 else None
            attention = dataclasses.replace(heads, value_dims=values)
        if units and ffn is not None and isinstance(layer.ffn, FfnConfig):
            ffn = KeptFfn(some(rng, layer.ffn.n_neurons))
        if ffn is not None and isinstance(layer.ffn, RoutedFfnConfig):
            experts = some(rng, len(layer.ffn.experts))
            ffn = keep_experts(layer.ffn, experts)
            if units:
                neurons = tuple(some(rng, layer.ffn.experts[expert]) for expert in experts)
                ffn = KeptExperts(experts, neurons)
        if attention is not None or ffn is not None:
            layers.append(KeptLayer(index, attention, ffn))
    name, fingerprint = case.checkpoint.name, case.checkpoint.fingerprint
    return Recipe(name, fingerprint, tuple(layers))


def both(case: Case, recipe: Recipe, weights: str) -> tuple[Engine, Mask, Engine]:
    mask = to_mask(recipe, case.checkpoint.config)
    slim = Engine(surgery.apply(case.checkpoint, recipe), weights=weights, threads=2, kv="f32")  # type: ignore[arg-type]
    return case.engine(weights=weights), mask, slim


@given(seed=seeds, weights=st.sampled_from(["f32", "bf16", "int8", "int4"]))
def test_layers_sub_blocks_and_experts_bit_for_bit(seed: int, weights: str) -> None:
    case = random_case(seed, max_tokens=80)
    dense, mask, slim = both(case, recipe_of(case, units=False), weights)
    masked, cut = dense.session(mask), slim.session()
    np.testing.assert_array_equal(masked.extend(case.tokens), cut.extend(case.tokens))
    np.testing.assert_array_equal(masked.extend([1]), cut.extend([1]))
    assert masked.kv_bytes == cut.kv_bytes


@given(seed=seeds, weights=st.sampled_from(["f32", "bf16"]))
def test_heads_and_neurons_to_rounding(seed: int, weights: str) -> None:
    case = random_case(seed, max_tokens=80)
    dense, mask, slim = both(case, recipe_of(case, units=True), weights)
    masked, cut = dense.session(mask), slim.session()
    assert difference(masked.extend(case.tokens), cut.extend(case.tokens)) < TOLERANCE
    assert difference(masked.extend([1]), cut.extend([1])) < TOLERANCE
    if not mask.value_dims:
        assert masked.kv_bytes == cut.kv_bytes


@given(seed=seeds, data=st.data())
def test_early_exit_equals_a_shorter_model(seed: int, data: st.DataObject) -> None:
    case = random_case(seed, max_tokens=60, max_layers=6)
    config = case.checkpoint.config
    if not config.layers:
        return
    last = data.draw(st.integers(0, len(config.layers) - 1))
    identity = Recipe.identity(case.checkpoint)
    shorter = Recipe(identity.source_name, identity.source_fingerprint, identity.layers[: last + 1])
    slim = Engine(surgery.apply(case.checkpoint, shorter), weights="f32")
    early = case.engine().session(Mask(exit_after=last))
    np.testing.assert_array_equal(early.extend(case.tokens), slim.session().extend(case.tokens))
