"""Rotary pairs of queries and keys: shapes, surgery, what they cost, plans and repair."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings

from prune.cases import random_model, random_units, seeds
from reference.engines import TOLERANCE
from reference.forward import forward
from reference.models import random_checkpoint
from slimformer.checkpoint import Checkpoint, load
from slimformer.config import AttentionConfig, FfnConfig, LayerConfig, ModelConfig, RopeConfig
from slimformer.engine import Engine
from slimformer.errors import BudgetError, ConfigError, RecipeError
from slimformer.prune import dearest_pairs, explicit, nest, plan, prune, prune_nested
from slimformer.prune.importance.pairs import pair_changes
from slimformer.prune.masks import to_mask
from slimformer.prune.recipe import KeptAttention, KeptLayer, Recipe, keep_all, part_count
from slimformer.prune.stream import embed
from slimformer.prune.structures import parameters_price, part_entries
from slimformer.prune.surgery import apply
from slimformer.tokenizer import Tokenizer

TEXTS = ["the light of the river and the stone in the engine to layer " * 60]
IDLE = (1, 2, 5)
"""Pairs that hardly matter in ``model``."""

Logits = npt.NDArray[np.float32]


def model(**changes: Any) -> Checkpoint:
    """Heads of eight pairs, of which some are small, and two entries that do not rotate."""
    attention = AttentionConfig(4, 2, 18, 16, (0, 1, 0, 1), 0.25, RopeConfig(16))
    attention = dataclasses.replace(attention, **changes)
    layer = LayerConfig(attention, FfnConfig(48))
    config = ModelConfig("llama", 300, 32, 32, 1e-5, True, 512, (layer,) * 3)
    checkpoint = random_checkpoint(config, 3, tokenizer=True)
    entries = part_entries(attention, "rotary_pairs")
    factors = np.ones(attention.head_dim, np.float32)
    factors[entries] = 3
    if len(entries):
        factors[entries[list(IDLE)]] = 0.02
    changed = {}
    for index in range(len(config.layers)):
        for part in ("q", "k"):
            name = f"layers.{index}.attention.{part}.weight"
            rows = checkpoint.read(name).reshape(-1, attention.head_dim, config.n_channels)
            changed[name] = (rows * factors[:, None]).reshape(-1, config.n_channels)
    return checkpoint.with_tensors(changed)


def without_pairs(rng: np.random.Generator, checkpoint: Checkpoint) -> Recipe:
    """Some pairs of each layer."""
    layers = []
    for index, layer in enumerate(checkpoint.config.layers):
        kept = keep_all(index, layer)
        if isinstance(layer.attention, AttentionConfig):
            count = part_count(layer.attention, "rotary_pairs")
            pairs = random_units(rng, count) if count else None
            assert isinstance(kept.attention, KeptAttention)
            attention = dataclasses.replace(kept.attention, rotary_pairs=pairs)
            kept = dataclasses.replace(kept, attention=attention)
        layers.append(kept)
    return Recipe(checkpoint.name, checkpoint.fingerprint, tuple(layers))


def silenced(checkpoint: Checkpoint, recipe: Recipe) -> Checkpoint:
    """The whole model with zeros where pairs go, in queries and keys."""
    values: dict[str, npt.NDArray[Any]] = {}
    for index, layer in enumerate(checkpoint.config.layers):
        pairs = recipe.layers[index].rotary_pairs
        if pairs is None or not isinstance(layer.attention, AttentionConfig):
            continue
        gone = np.delete(part_entries(layer.attention, "rotary_pairs"), pairs, axis=0).reshape(-1)
        for part in ("q.weight", "k.weight", "q.bias", "k.bias"):
            name = f"layers.{index}.attention.{part}"
            if name in checkpoint.tensors:
                array = np.array(checkpoint.read(name))
                array.reshape(-1, layer.attention.head_dim, *array.shape[1:])[:, gone] = 0
                values[name] = array
    return checkpoint.with_tensors(values)


def logits(checkpoint: Checkpoint | Path, tokens: Sequence[int] = range(2, 30)) -> Logits:
    engine = Engine(checkpoint, weights="f32", threads=2)
    return engine.forward([engine.session()], [list(tokens)], logits="all")


def difference(a: Logits, b: Logits) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


@given(seed=seeds)
def test_removing_pairs_leaves_their_products_out(seed: int) -> None:
    rng = np.random.default_rng(seed)
    dense = random_model(rng)
    recipe = without_pairs(rng, dense)
    slim, silent = apply(dense, recipe), silenced(dense, recipe)
    tokens = rng.integers(0, dense.config.vocab_size, 20).tolist()
    cut = forward(slim.config, slim.read_f32, tokens)
    wanted = forward(silent.config, silent.read_f32, tokens)
    # Both in float64; only the order of sums differs.
    np.testing.assert_allclose(cut, wanted, rtol=1e-9, atol=1e-9 * np.abs(wanted).max())


@settings(max_examples=25)
@given(seed=seeds)
def test_the_engine_runs_what_is_left_and_folders_keep_it(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rng = np.random.default_rng(seed)
    dense = random_model(rng)
    recipe = without_pairs(rng, dense)
    slim = apply(dense, recipe)
    assert difference(logits(slim), logits(silenced(dense, recipe))) < TOLERANCE
    folder = tmp_path_factory.mktemp("pairs") / "m"
    slim.save(folder)
    assert load(folder).config == slim.config
    np.testing.assert_array_equal(logits(folder), logits(slim))
    assert Recipe.from_json(recipe.to_json()) == recipe
    later = without_pairs(rng, slim)
    assert apply(slim, later).fingerprint == apply(dense, recipe.then(later)).fingerprint


def test_what_stays_of_a_head_is_what_was_there() -> None:
    dense = model()
    whole = keep_all(1, dense.config.layers[1])
    assert isinstance(whole.attention, KeptAttention)
    some = dataclasses.replace(whole.attention, rotary_pairs=(0, 3, 7))
    layers = [keep_all(index, layer) for index, layer in enumerate(dense.config.layers)]
    layers[1] = dataclasses.replace(whole, attention=some)
    slim = apply(dense, Recipe(dense.name, dense.fingerprint, tuple(layers)))
    attention = slim.config.layers[1].attention
    assert isinstance(attention, AttentionConfig)
    assert (attention.head_dim, attention.value_dim, attention.scale) == (8, 16, 0.25)
    rows = dense.read("layers.1.attention.k.weight").reshape(2, 18, -1)
    left = slim.read("layers.1.attention.k.weight").reshape(2, 8, -1)
    np.testing.assert_array_equal(left, rows[:, [0, 3, 7, 8, 11, 15, 16, 17]])


def test_the_pairs_that_do_least_cost_least() -> None:
    dense = model()
    assert dense.tokenizer is not None
    tokens = Tokenizer(dense.tokenizer).encode(TEXTS[0])[:256]
    hidden = embed(dense, np.asarray(tokens, np.int32).reshape(2, 128))
    costs = pair_changes(dense, 0, hidden, threads=1)
    assert costs is not None
    assert set(np.argsort(costs)[:3].tolist()) == set(IDLE)
    assert pair_changes(model(rope=None), 0, hidden, threads=1) is None
    assert pair_changes(model(qk_norm="head"), 0, hidden, threads=1) is None


def test_the_last_pair_has_no_cost() -> None:
    dense = apply(model(), explicit(model(), rotary_pairs={0: (5,)}))
    hidden = embed(dense, np.arange(16, dtype=np.int32).reshape(2, 8))
    np.testing.assert_array_equal(pair_changes(dense, 0, hidden, threads=1), [0.0])


@pytest.mark.parametrize("criterion", ["magnitude", "activation", "obs", "loss"])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_plans_meet_a_budget_with_them(criterion: Any, allocation: Any) -> None:
    dense = model()
    recipe = plan(
        dense,
        keep=0.93,
        structures=("rotary_pairs",),
        criterion=criterion,
        allocation=allocation,
        protect=(),
        calibration=TEXTS,
        tokens=1024,
        threads=1,
    )
    slim = apply(dense, recipe)
    total = dense.config.non_embedding_parameters()
    assert 0.85 * total < slim.config.non_embedding_parameters() <= 0.93 * total
    gone = [set(range(8)) - set(kept.rotary_pairs or range(8)) for kept in recipe.layers]
    assert any(gone)
    assert all(one <= set(IDLE) or one >= set(IDLE) for one in gone)


def test_pairs_beside_others_and_repaired() -> None:
    dense = model()
    options: dict[str, Any] = {"calibration": TEXTS, "tokens": 1024, "threads": 1}
    structures = ("rotary_pairs", "value_dims", "neurons")
    recipe = plan(dense, keep=0.7, structures=structures, allocation="uniform", **options)
    assert {len(kept.rotary_pairs or ()) for kept in recipe.layers} != {0}
    cut = prune(dense, recipe, repair="none")
    mean = prune(dense, recipe, repair="mean", **options)
    refitted = prune(dense, recipe, **options)
    assert cut.config == refitted.config == mean.config
    assert dense.tokenizer is not None
    text = Tokenizer(dense.tokenizer).encode(TEXTS[0])[:200]
    lost = [np.linalg.norm(logits(one, text) - logits(dense, text)) for one in (refitted, cut)]
    assert lost[0] < lost[1]


def test_a_refit_makes_up_for_pairs_alone() -> None:
    dense = model()
    options: dict[str, Any] = {"calibration": TEXTS, "threads": 1}
    pairs = dearest_pairs(dense, 3, tokens=256, **options)
    assert not any(set(IDLE) & set(own) for own in pairs.values())
    recipe = explicit(dense, rotary_pairs=pairs)
    cut = prune(dense, recipe, repair="none")
    refitted = prune(dense, recipe, tokens=1024, **options)
    assert dense.tokenizer is not None
    text = Tokenizer(dense.tokenizer).encode(TEXTS[0])[:200]
    lost = [np.linalg.norm(logits(one, text) - logits(dense, text)) for one in (refitted, cut)]
    assert lost[0] < lost[1]


def test_narrower_models_of_one_folder_keep_fewer_pairs(tmp_path: Path) -> None:
    options: dict[str, Any] = {"criterion": "magnitude", "protect": (), "repair": "none"}
    models = prune_nested(model(), (0.95, 0.9), structures=("rotary_pairs",), **options)
    pairs = [Recipe.from_dict(one.recipe or {}).layers[1].rotary_pairs for one in models.values()]
    assert pairs[0] is not None
    assert set(pairs[0]) > set(pairs[1] or ())
    nest(models, tmp_path / "m")
    for width, one in models.items():
        np.testing.assert_array_equal(logits(load(tmp_path / "m", width=width)), logits(one))


def test_what_cannot_go_is_refused() -> None:
    dense = model()
    whole = keep_all(0, dense.config.layers[0])
    assert isinstance(whole.attention, KeptAttention)

    def recipe(pairs: tuple[int, ...], source: Checkpoint = dense) -> Recipe:
        assert isinstance(whole.attention, KeptAttention)
        kept = dataclasses.replace(whole.attention, rotary_pairs=pairs)
        return Recipe(source.name, source.fingerprint, (KeptLayer(0, kept, whole.ffn),))

    with pytest.raises(RecipeError, match=r"rotary_pairs: expected indices below 8, found 8"):
        apply(dense, recipe((0, 8)))
    with pytest.raises(RecipeError, match=r"rotary_pairs: expected ascending indices"):
        recipe((3, 1))
    with pytest.raises(ConfigError, match="rotary_pairs: expected at least 1"):
        dearest_pairs(dense, 0)
    with pytest.raises(RecipeError, match="rotary_pairs: layer 2: the model has 0 to 7, found 9"):
        explicit(dense, rotary_pairs={2: (1, 9)})
    with pytest.raises(RecipeError, match="layer 0: rotary_pairs: no mask does without"):
        to_mask(recipe((0, 1)), dense.config)
    for other, why in ((model(rope=None), "do not rotate"), (model(qk_norm="head"), "normalised")):
        with pytest.raises(RecipeError, match=f"none may go from this layer, since.*{why}"):
            apply(other, recipe((0, 1), other))
    with pytest.raises(ConfigError, match=r"rotary_pairs: none may go.*no layer rotates"):
        plan(model(rope=None), keep=0.9, structures=("rotary_pairs",), criterion="magnitude")
    with pytest.raises(ConfigError, match=r"rotary_pairs: none may go.*norms of single heads"):
        dearest_pairs(model(qk_norm="head"), 2)
    with pytest.raises(RecipeError, match="rotary_pairs: layer 0 has no rotary pairs of which"):
        explicit(model(qk_norm="head"), rotary_pairs={0: (1,)})
    with pytest.raises(BudgetError, match="cannot be met by removing rotary_pairs"):
        plan(dense, keep=0.5, structures=("rotary_pairs",), criterion="magnitude")


@given(seed=seeds)
def test_a_price_counts_what_goes_with_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    dense = random_model(rng)
    recipe = without_pairs(rng, dense)
    slim = apply(dense, recipe)
    for index, layer in enumerate(dense.config.layers):
        if isinstance(layer.attention, AttentionConfig):
            pairs = recipe.layers[index].rotary_pairs
            gone = 0 if pairs is None else part_count(layer.attention, "rotary_pairs") - len(pairs)
            weights = [
                parameters_price(config, index).of(
                    layer.attention.n_heads,
                    layer.attention.n_kv_heads,
                    0,
                    attention=True,
                    ffn=False,
                    pairs_gone=less,
                )
                for config, less in ((dense.config, gone), (slim.config, 0))
            ]
            assert weights[0] == weights[1]
