from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings

from prune.cases import random_model, random_recipe, seeds
from prune.test_allocate import uniform_model
from reference.forward import forward
from slimformer.checkpoint import cast
from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.errors import ConfigError, DataError, RecipeError
from slimformer.prune import Recipe, apply, explicit, plan, prune
from slimformer.prune.calibrate import make_windows
from slimformer.prune.recipe import KeptAttention, KeptFfn
from slimformer.prune.repair import Repair

TEXT = ["the river of light and the stone engine 0123456789 " * 200]


def drift(dense: Checkpoint, slim: Checkpoint) -> float:
    """Mean squared difference of the logits on text like the calibration text, but another."""
    errors = []
    for window in make_windows(dense, random_text(2), tokens=200, seed=0, window=50):
        a = forward(dense.config, dense.read_f32, window.tolist())
        b = forward(slim.config, slim.read_f32, window.tolist())
        errors.append(np.mean((a - b) ** 2))
    return float(np.mean(errors))


def random_text(seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(chr(int(code)) for code in rng.integers(33, 127, 9000))]


def test_what_others_can_take_over_is_repaired_in_full() -> None:
    model = uniform_model(layers=3, neurons=64)
    twins = {}
    for index in range(3):
        for part in ("gate", "up"):
            name = f"layers.{index}.ffn.{part}.weight"
            twins[name] = np.concatenate([model.read(name)[:32]] * 2)
    model = model.with_tensors(twins)
    recipe = explicit(model, neurons={index: range(32) for index in range(3)})
    cut = prune(model, recipe, repair="none")
    repaired = prune(model, recipe, repair="refit", calibration=random_text(1), tokens=8192)
    assert drift(model, repaired) < 1e-3 * drift(model, cut)


def test_an_encoder_is_rated_without_predictions() -> None:
    model = uniform_model(layers=3, neurons=48)
    encoder = dataclasses.replace(
        model, config=dataclasses.replace(model.config, causal=False, tied_head=True)
    )
    assert plan(encoder, keep=0.9, calibration=TEXT).to_dict()["layers"]
    for criterion in ("loss", "greedy_loss"):
        with pytest.raises(ConfigError, match="an encoder makes none"):
            plan(encoder, keep=0.8, criterion=criterion, structures=("layers",), calibration=TEXT)


@pytest.mark.parametrize("repair", ["refit", "mean"])
def test_two_runs_give_the_same_bytes_on_any_threads(repair: Repair) -> None:
    model = uniform_model(layers=3, neurons=48)
    recipes, prints = set(), set()
    for threads in (1, 2, 2):
        recipe = plan(model, keep=0.9, calibration=TEXT, threads=threads)
        recipes.add(recipe.to_json())
        slim = prune(model, recipe, repair=repair, calibration=TEXT, threads=threads)
        prints.add(slim.fingerprint)
    assert len(recipes) == len(prints) == 1


@settings(max_examples=15)
@given(seeds)
def test_any_model_can_be_repaired_after_any_recipe(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = random_model(rng)
    for repair in ("refit", "mean"):
        recipe = random_recipe(rng, model, links=repair == "refit")
        slim = prune(model, recipe, repair=repair, calibration=TEXT, tokens=1024)
        assert slim.config == apply(model, recipe).config
        assert slim.recipe == recipe.to_dict()
        tokens = rng.integers(0, slim.config.vocab_size, 10).tolist()
        assert np.isfinite(forward(slim.config, slim.read_f32, tokens)).all()


def test_repairing_the_whole_model_leaves_it_as_it_is() -> None:
    model = uniform_model(layers=3, neurons=48)
    slim = prune(model, Recipe.identity(model), calibration=random_text(1))
    assert drift(model, slim) < 1e-6


def test_the_result_has_the_dtype_asked_for() -> None:
    model = uniform_model(layers=3, neurons=48)
    recipe = explicit(model, neurons=32)
    quantised = dataclasses.replace(model, quantised=True)
    for source, dtype, expected in (
        (model, "auto", "f32"),
        (model, "f16", "f16"),
        (cast(model, "bf16"), "auto", "bf16"),
        (quantised, "auto", "bf16"),
        (quantised, "f32", "f32"),
    ):
        for repair in ("none", "refit"):
            used = dataclasses.replace(recipe, source_fingerprint=source.fingerprint)
            slim = prune(source, used, repair=repair, dtype=dtype, calibration=TEXT)  # type: ignore[arg-type]
            assert {tensor.dtype for tensor in slim.tensors.values()} == {expected}
            for name, tensor in slim.tensors.items():
                assert tensor.read().dtype == slim.read(name).dtype


def test_pruning_needs_nothing_but_the_model() -> None:
    model = uniform_model(layers=3, neurons=48)
    slim = prune(model, plan(model, keep=0.9, tokens=512), tokens=512)
    assert slim.config.non_embedding_parameters() <= 0.9 * model.config.non_embedding_parameters()


def test_progress_is_told_and_may_interrupt() -> None:
    model = uniform_model(layers=3, neurons=48)
    told: list[tuple[str, int, int]] = []
    recipe = plan(model, keep=0.9, calibration=TEXT, progress=lambda *step: told.append(step))
    prune(model, recipe, calibration=TEXT, progress=lambda *step: told.append(step))
    assert {total for _, _, total in told} == {3}
    assert all(0 <= done <= total for _, done, total in told)

    def stop(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    before = model.fingerprint
    with pytest.raises(KeyboardInterrupt):
        prune(model, recipe, calibration=TEXT, progress=stop)
    assert dataclasses.replace(model).fingerprint == before


def test_mistakes_are_told() -> None:
    model = uniform_model(layers=3, neurons=48)
    recipe = explicit(model, neurons=32)
    with pytest.raises(RecipeError, match="made for"):
        prune(uniform_model(layers=4), recipe, repair="none")
    with pytest.raises(ConfigError, match="repair"):
        prune(model, recipe, repair="hope")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="fewer than two tokens"):
        prune(model, recipe, calibration=[""])


def test_explicit_lists() -> None:
    model = uniform_model(layers=6, neurons=48)
    recipe = explicit(
        model,
        drop_layers=[1],
        drop_attention=[2, 3],
        drop_ffn=[3, 4],
        heads={5: [4, 0]},
        neurons=16,
    )
    assert [kept.source for kept in recipe.layers] == [0, 2, 4, 5]
    kept = {layer.source: layer for layer in recipe.layers}
    assert kept[5].attention == KeptAttention((0, 4), (0, 2))
    assert kept[2].attention is None
    assert kept[4].ffn is None
    assert isinstance(kept[0].ffn, KeptFfn)
    assert len(kept[0].ffn.neurons) == 16
    listed = explicit(model, neurons={0: range(5), 1: ()})
    assert listed.layers[0].ffn == KeptFfn((0, 1, 2, 3, 4))
    assert listed.layers[1].ffn is None
    assert explicit(model) == Recipe.identity(model)
    assert explicit(model, neurons=48) == Recipe.identity(model)


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"drop_layers": [6]}, "drop_layers"),
        ({"drop_ffn": [-1]}, "drop_ffn"),
        ({"heads": {9: [0]}}, "heads"),
        ({"heads": {0: [6]}}, "layer 0"),
        ({"neurons": 0}, "at least 1"),
        ({"neurons": {0: [48]}}, "layer 0"),
    ],
)
def test_explicit_lists_of_what_is_not_there(lists: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        explicit(uniform_model(layers=6, neurons=48), **lists)  # type: ignore[arg-type]
