"""Value heads of lower rank: bases, surgery, plans."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prune.cases import random_model, seeds
from reference.engines import TOLERANCE
from reference.models import random_checkpoint
from slimformer.checkpoint import Checkpoint, load
from slimformer.config import AttentionConfig, FfnConfig, LayerConfig, ModelConfig, RopeConfig
from slimformer.engine import Engine
from slimformer.errors import ConfigError, RecipeError
from slimformer.prune import align_values, explicit, plan, prune
from slimformer.prune.recipe import KeptAttention, KeptLayer, Recipe, keep_all
from slimformer.prune.surgery import apply
from slimformer.prune.values.basis import best_bases, turn_values
from slimformer.tokenizer import Tokenizer

TEXTS = ["the light of the river and the stone in the engine to layer " * 60]

Logits = npt.NDArray[np.float32]


def low_rank_model(rank: int) -> Checkpoint:
    """Values of 16 entries, of which the outputs of each KV head see a mixture of few."""
    attention = AttentionConfig(4, 2, 16, 16, (0, 1, 0, 1), 0.25, RopeConfig(16))
    layer = LayerConfig(attention, FfnConfig(48))
    config = ModelConfig("llama", 300, 32, 32, 1e-5, True, 512, (layer,) * 3)
    model = random_checkpoint(config, 3, tokenizer=True)
    rng = np.random.default_rng(0)
    changed = {}
    for index in range(len(config.layers)):
        name = f"layers.{index}.attention.o.weight"
        seen = rng.standard_normal((2, 16, rank)) @ rng.standard_normal((2, rank, 16)) / rank
        by_head = model.read(name).reshape(32, 4, 16)
        changed[name] = np.einsum("chv,hvw->chw", by_head, seen[[0, 1, 0, 1]]).reshape(32, 64)
    return model.with_tensors({name: v.astype(np.float32) for name, v in changed.items()})


def random_bases(rng: np.random.Generator, model: Checkpoint) -> dict[int, Any]:
    bases = {}
    for index, layer in enumerate(model.config.layers):
        if isinstance(layer.attention, AttentionConfig):
            width = layer.attention.value_dim
            noise = rng.standard_normal((layer.attention.n_kv_heads, width, width))
            bases[index] = noise + 3 * np.eye(width)
    return bases


def without_values(rng: np.random.Generator, model: Checkpoint) -> Recipe:
    """Some entries of the values of each layer, in any order."""
    layers = []
    for index, layer in enumerate(model.config.layers):
        kept = keep_all(index, layer)
        if isinstance(layer.attention, AttentionConfig):
            count = int(rng.integers(1, layer.attention.value_dim + 1))
            order = rng.permutation(layer.attention.value_dim)[:count]
            assert isinstance(kept.attention, KeptAttention)
            attention = dataclasses.replace(kept.attention, value_dims=tuple(map(int, order)))
            kept = dataclasses.replace(kept, attention=attention)
        layers.append(kept)
    return Recipe(model.name, model.fingerprint, tuple(layers))


def logits(model: Checkpoint | Path, tokens: Sequence[int] = range(2, 30)) -> Logits:
    engine = Engine(model, weights="f32", threads=2)
    return engine.forward([engine.session()], [list(tokens)], logits="all")


def difference(a: Logits, b: Logits) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


@settings(max_examples=25)
@given(seed=seeds)
def test_another_basis_is_the_same_model(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = random_model(rng)
    turned = turn_values(model, random_bases(rng, model))
    assert turned.config == model.config
    # The bases are no rotations: what they stretch is rounded as it is stretched.
    assert difference(logits(turned), logits(model)) < 10 * TOLERANCE


@settings(max_examples=25)
@given(seed=seeds)
def test_removing_entries_is_silencing_them(seed: int, tmp_path_factory: Any) -> None:
    rng = np.random.default_rng(seed)
    model = random_model(rng)
    recipe = without_values(rng, model)
    silent = {}
    for index, layer in enumerate(model.config.layers):
        kept = recipe.layers[index].attention
        if isinstance(kept, KeptAttention) and isinstance(layer.attention, AttentionConfig):
            name = f"layers.{index}.attention.o.weight"
            columns = model.read(name).reshape(model.config.n_channels, layer.attention.n_heads, -1)
            mask = np.zeros(layer.attention.value_dim, np.float32)
            mask[list(kept.value_dims or ())] = 1
            silent[name] = (columns * mask).reshape(model.tensors[name].shape)
    slim = apply(model, recipe)
    assert difference(logits(slim), logits(model.with_tensors(silent))) < TOLERANCE
    folder = tmp_path_factory.mktemp("values")
    slim.save(folder / "m")
    again = load(folder / "m")
    assert again.config == slim.config
    np.testing.assert_array_equal(logits(folder / "m"), logits(slim))
    assert Recipe.from_json(recipe.to_json()) == recipe
    later = without_values(rng, slim)
    assert apply(slim, later).fingerprint == apply(model, recipe.then(later)).fingerprint


@given(seed=seeds, rank=st.integers(1, 7))
def test_no_other_rank_loses_less(seed: int, rank: int) -> None:
    """For one head that sees its own values, against random encoders with the best decoder."""
    rng = np.random.default_rng(seed)
    attention = AttentionConfig(1, 1, 8, 8, (0,), 1.0, None)
    weight = rng.standard_normal((12, 8))
    factor = rng.standard_normal((8, 8)) * np.geomspace(1, 0.05, 8)
    gram = factor @ factor.T
    (basis,) = best_bases(attention, weight.astype(np.float32), gram)

    def lost(encoder: npt.NDArray[np.float64], decoder: npt.NDArray[np.float64]) -> float:
        error = weight - decoder @ encoder
        return float(np.trace(error @ gram @ error.T))

    decoder = weight @ np.linalg.inv(basis)
    found = lost(basis[:rank], decoder[:, :rank])
    for _ in range(5):
        encoder = rng.standard_normal((rank, 8))
        inner = encoder @ gram @ encoder.T
        best = weight @ gram @ encoder.T @ np.linalg.inv(inner)
        assert found <= lost(encoder, best) * 1.01


def test_alignment_finds_a_low_rank() -> None:
    model = low_rank_model(rank=5)
    aligned = align_values(model, calibration=TEXTS, tokens=512, threads=1)
    assert difference(logits(aligned), logits(model)) < 10 * TOLERANCE
    cut = apply(aligned, explicit(aligned, value_dims=5))
    assert [layer.attention.value_dim for layer in cut.config.layers] == [5] * 3  # type: ignore[union-attr]
    assert difference(logits(cut), logits(model)) < 10 * TOLERANCE
    assert difference(logits(apply(model, explicit(model, value_dims=5))), logits(model)) > 0.05


@pytest.mark.parametrize("criterion", ["magnitude", "activation", "obs", "loss"])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_plans_meet_a_budget_with_them(criterion: Any, allocation: Any) -> None:
    model = align_values(low_rank_model(rank=5), calibration=TEXTS, tokens=512, threads=1)
    recipe = plan(
        model,
        keep=0.85,
        structures=("value_dims", "neurons"),
        criterion=criterion,
        allocation=allocation,
        protect=(),
        calibration=TEXTS,
        tokens=1024,
        threads=1,
    )
    slim = apply(model, recipe)
    total = model.config.non_embedding_parameters()
    assert 0.75 * total < slim.config.non_embedding_parameters() <= 0.85 * total
    widths = [layer.attention.value_dim for layer in slim.config.layers]  # type: ignore[union-attr]
    # Magnitudes of values are not those of neurons: all of the one may be dearer than the other.
    assert min(widths) < 16 or (criterion, allocation) == ("magnitude", "global")


def test_values_alone_and_refitted() -> None:
    model = align_values(low_rank_model(rank=12), calibration=TEXTS, tokens=512, threads=1)
    options: dict[str, Any] = {"calibration": TEXTS, "tokens": 1024, "threads": 1}
    recipe = plan(model, keep=0.9, structures=("value_dims",), protect=(), **options)
    cut = prune(model, recipe, repair="none")
    refitted = prune(model, recipe, **options)
    assert cut.config == refitted.config
    assert model.tokenizer is not None
    text = Tokenizer(model.tokenizer).encode(TEXTS[0])[:200]
    lost = [np.linalg.norm(logits(one, text) - logits(model, text)) for one in (refitted, cut)]
    assert lost[0] < lost[1]


def test_bad_bases_and_recipes_are_refused() -> None:
    model = low_rank_model(rank=5)
    with pytest.raises(ConfigError, match=r"layer 0: expected \[2, 16, 16\]"):
        turn_values(model, {0: np.eye(16)})
    with pytest.raises(ConfigError, match="has no inverse"):
        turn_values(model, {0: np.zeros((2, 16, 16))})
    with pytest.raises(ConfigError, match="layer 7"):
        turn_values(model, {7: np.zeros((2, 16, 16))})
    whole = keep_all(0, model.config.layers[0])
    assert isinstance(whole.attention, KeptAttention)
    wide = dataclasses.replace(whole.attention, value_dims=(0, 16))
    recipe = Recipe(model.name, model.fingerprint, (KeptLayer(0, wide, whole.ffn),))
    with pytest.raises(RecipeError, match=r"value_dims: expected indices below 16, found 16"):
        apply(model, recipe)
    with pytest.raises(RecipeError, match="value_dims: expected at least 1"):
        explicit(model, value_dims=0)
