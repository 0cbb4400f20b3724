"""Several widths in one folder: each is the model that would have been saved alone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from prune.cases import random_model, random_recipe, seeds
from reference.engines import TOLERANCE
from reference.models import random_checkpoint
from slimformer.checkpoint import Checkpoint, load, widths
from slimformer.checkpoint.nested import FILE, WEIGHTS
from slimformer.checkpoint.safetensors_files import SINGLE_FILE
from slimformer.config import AttentionConfig, FfnConfig, LayerConfig, ModelConfig, RopeConfig
from slimformer.engine import Engine
from slimformer.errors import BudgetError, ConfigError, FormatError, RecipeError
from slimformer.prune import explicit, nest, prune_nested
from slimformer.prune.recipe import Recipe
from slimformer.prune.surgery import apply

WIDTHS = (0.9, 0.8, 0.7)

TEXTS = ["the light of the river and the stone in the engine to layer " * 40]


def small_model() -> Checkpoint:
    attention = AttentionConfig(4, 2, 8, 8, (0, 0, 1, 1), 8**-0.5, RopeConfig(8))
    layer = LayerConfig(attention, FfnConfig(64))
    config = ModelConfig("llama", 300, 32, 32, 1e-5, True, 512, (layer,) * 4)
    return random_checkpoint(config, 1, tokenizer=True)


def nested_models(rng: np.random.Generator) -> dict[float, Checkpoint]:
    """Random models, each with some of the units of the one before, links and experts too."""
    model = random_model(rng)
    models = {}
    for width in WIDTHS:
        layers = random_recipe(rng, model).layers
        model = apply(model, Recipe(model.name, model.fingerprint, layers))
        models[width] = model
    return models


def logits(model: Checkpoint | Path, **options: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    engine = Engine(model, weights="f32", threads=2, **options)
    return engine.forward([engine.session()], [list(range(2, 20))], logits="all")


@settings(max_examples=30)
@given(seed=seeds)
def test_each_width_is_the_model_saved_alone(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("nested")
    models = nested_models(np.random.default_rng(seed))
    nest(models, folder / "all")
    assert widths(folder / "all") == WIDTHS
    for width, model in models.items():
        found = load(folder / "all", width=width)
        found.save(folder / "alone")
        alone = load(folder / "alone")
        assert alone.fingerprint == found.fingerprint
        assert alone.recipe == found.recipe
        inside = logits(folder / "all", width=width)
        np.testing.assert_array_equal(inside, logits(folder / "alone"))
        # Beside the model that was nested, sums run in another order.
        before = logits(model)
        assert np.abs(inside - before).max() <= TOLERANCE * np.abs(before).max()
        assert load(f"{folder / 'all'}@{width}").fingerprint == found.fingerprint


def test_without_repair_nothing_is_stored_twice(tmp_path: Path) -> None:
    dense = small_model()
    models = prune_nested(
        dense,
        [1, 0.8, 0.5],
        structures=("neurons", "heads"),
        criterion="magnitude",
        protect=(),
        repair="none",
    )
    nest(models, tmp_path / "m")
    assert not (tmp_path / "m" / WEIGHTS).exists()
    dense.save(tmp_path / "dense")
    size = (tmp_path / "dense" / SINGLE_FILE).stat().st_size
    assert (tmp_path / "m" / SINGLE_FILE).stat().st_size == size
    total = dense.config.non_embedding_parameters()
    for width in (0.8, 0.5):
        model = load(tmp_path / "m", width=width)
        assert 0.8 * width * total < model.config.non_embedding_parameters() <= width * total
        # Rows are views of the mapped file.
        q = model.read("layers.1.attention.q.weight")
        assert q.base is not None
        assert not q.flags.owndata


def test_a_recipe_of_a_width_makes_that_model_again(tmp_path: Path) -> None:
    dense = small_model()
    models = prune_nested(dense, [0.9, 0.7], criterion="magnitude", repair="none")
    nest(models, tmp_path / "m")
    for width in models:
        found = load(tmp_path / "m", width=width)
        again = apply(dense, Recipe.from_dict(found.recipe or {}))
        assert again.fingerprint == found.fingerprint
        assert again.config == found.config


def test_a_repair_is_stored_where_it_changed_something(tmp_path: Path) -> None:
    models = prune_nested(
        small_model(), [0.9, 0.7], calibration=TEXTS, tokens=512, threads=1, criterion="obs"
    )
    nest(models, tmp_path / "m")
    narrow = models[0.7]
    whole = narrow.nbytes - narrow.tensors["embedding.weight"].nbytes
    assert 0 < (tmp_path / "m" / WEIGHTS).stat().st_size < 0.6 * whole
    before = logits(narrow)
    inside = logits(tmp_path / "m", width=0.7)
    assert np.abs(inside - before).max() <= TOLERANCE * np.abs(before).max()
    narrow.save(tmp_path / "m")  # a single model in place of several
    assert widths(tmp_path / "m") == ()


def test_protected_layers_stay_whole_in_every_width() -> None:
    models = prune_nested(
        small_model(), [0.9, 0.8], criterion="magnitude", repair="none", protect=[0, -1]
    )
    for model in models.values():
        neurons = [layer.ffn.n_neurons for layer in model.config.layers]  # type: ignore[union-attr]
        assert neurons[0] == neurons[-1] == 64
        assert max(neurons[1:3]) < 64


def test_an_unknown_width_names_those_there_are(tmp_path: Path) -> None:
    dense = small_model()
    nest(prune_nested(dense, [0.9, 0.8], criterion="magnitude", repair="none"), tmp_path / "m")
    with pytest.raises(ConfigError, match=r"has the widths 0\.9, 0\.8, found 0\.75"):
        Engine(tmp_path / "m", width=0.75)
    with pytest.raises(ConfigError, match=r"has the widths 0\.9, 0\.8, found 0\.75"):
        load(f"{tmp_path / 'm'}@0.75")
    with pytest.raises(ConfigError, match=r"give it to slimformer\.load"):
        Engine(dense, width=0.9)
    dense.save(tmp_path / "single")
    with pytest.raises(ConfigError, match="a model of one width"):
        load(tmp_path / "single", width=0.8)


def test_models_that_do_not_lie_inside_each_other_are_refused(tmp_path: Path) -> None:
    dense = small_model()
    first = apply(dense, explicit(dense, neurons={1: range(32)}))
    other = apply(dense, explicit(dense, neurons={1: range(20, 40)}))
    with pytest.raises(RecipeError, match=r"width 0.8 in 0.9: layer 1: expected neurons"):
        nest({0.9: first, 0.8: other}, tmp_path / "m")
    shorter = apply(dense, explicit(dense, drop_layers=[1]))
    with pytest.raises(RecipeError, match="layer 1 is not kept"):
        nest({0.9: shorter, 0.8: first}, tmp_path / "m")
    with pytest.raises(RecipeError, match="source_fingerprint"):
        nest({0.9: dense, 0.8: random_checkpoint(dense.config, 2)}, tmp_path / "m")
    with pytest.raises(ConfigError, match="save them densely"):
        nest({0.9: dense, 0.8: dataclasses.replace(first, sparse=True)}, tmp_path / "m")
    with pytest.raises(ConfigError, match="widths from 0 to 1"):
        nest({}, tmp_path / "m")


def test_widths_that_cannot_be_met_are_named() -> None:
    with pytest.raises(BudgetError, match="shares"):
        prune_nested(small_model(), [1.5])
    with pytest.raises(BudgetError, match=r"width 0.3 inside 0.9: .* cannot be met"):
        prune_nested(small_model(), [0.9, 0.3], criterion="magnitude", repair="none")


def change(*path: Any, to: Any) -> Callable[[Any], None]:
    def apply(value: Any) -> None:
        for key in path[:-1]:
            value = value[key]
        value[path[-1]] = to

    return apply


HOSTILE = {
    "another schema": (change("schema", to=2), "schema"),
    "width above 1": (change("width", to=1.5), "falling widths"),
    "rising widths": (change("narrower", 0, "width", to=0.95), "falling widths"),
    "a width twice": (change("narrower", 1, "width", to=0.8), "falling widths"),
    "no width": (change("narrower", 0, "width", to=None), "width: expected a finite number"),
    "no list": (change("narrower", to={}), "narrower"),
    "too many widths": (change("narrower", to=[{}] * 100), "narrower"),
    "a number for a model": (change("narrower", 0, to=3), r"narrower\[0\]"),
    "layers in no order": (change("narrower", 0, "layers", to=[1, 0, 2, 3]), "ascending layers"),
    "layers that are none": (change("narrower", 0, "layers", to=[0, 1, 2, 9]), "layers: expected"),
    "too few layers": (change("narrower", 0, "layers", to=[0, 1]), "layers: expected"),
    "a shape that is none": (change("narrower", 0, "config", to=[]), "config"),
    "more than the widest has": (
        change("narrower", 0, "config", "vocab_size", to=400),
        "embedding.weight: expected shape",
    ),
    "a recipe that is none": (change("narrower", 0, "recipe", to=[]), "recipe"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_folders_are_refused(name: str, tmp_path: Path) -> None:
    models = prune_nested(
        small_model(), [0.9, 0.8, 0.7], criterion="magnitude", repair="none", protect=()
    )
    nest(models, tmp_path / "m")
    path = tmp_path / "m" / FILE
    value = json.loads(path.read_text())
    spoil, where = HOSTILE[name]
    spoil(value)
    path.write_text(json.dumps(value))
    with pytest.raises(FormatError, match=where):
        load(tmp_path / "m", width=0.8)
