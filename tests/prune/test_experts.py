"""Experts as a structure: which go, by which criterion, and what is left."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings

from prune.cases import IDLE, routed_model, seeds
from prune.test_allocate import kept_share
from prune.test_importance import TEXT, norm_divisors, windows_of
from reference.engines import difference
from reference.forward import forward
from reference.models import random_checkpoint, random_config
from slimformer.checkpoint import Checkpoint, load, save
from slimformer.config import (
    FfnConfig,
    LayerConfig,
    RoutedFfnConfig,
)
from slimformer.engine import Engine, Mask
from slimformer.errors import BudgetError, ConfigError, RecipeError
from slimformer.progress import silent
from slimformer.prune import explicit, plan, prune
from slimformer.prune.budget import keep_budget
from slimformer.prune.calibrate import calibration_windows
from slimformer.prune.expert_drafts import expert_variants
from slimformer.prune.importance import score_model
from slimformer.prune.importance.scores import LayerScores
from slimformer.prune.recipe import KeptExperts, Recipe
from slimformer.prune.surgery import apply
from slimformer.prune.windows import in_parts
from slimformer.prune.zeros.choice import METHODS, Method, Zeros, layer_sizes
from slimformer.prune.zeros.pattern import Pattern
from slimformer.prune.zeros.walk import fill


def same(one: Checkpoint, other: Checkpoint, name: str) -> bool:
    return np.array_equal(one.read(name), other.read(name))


def states(model: Checkpoint, tokens: np.ndarray) -> np.ndarray:
    """The stream behind the last layer, [tokens, channels]."""
    engine = Engine(model, weights="f32", threads=1)
    rows = engine.embed(tokens)
    return engine.run_layers(rows, [len(tokens)], first=0, last=len(model.config.layers))[0]


def with_twins(model: Checkpoint) -> Checkpoint:
    """The second half of each expert's neurons do nearly what those of the first half do."""
    rng = np.random.default_rng(3)
    changed = {}
    for name in model.tensors:
        if ".experts." in name and not name.endswith("down.weight"):
            values = model.read(name).copy()
            half = len(values) // 2
            noise = rng.standard_normal(values[:half].shape).astype(np.float32)
            values[half:] = values[:half] + 0.02 * np.abs(values).mean() * noise
            changed[name] = values
    return model.with_tensors(changed)


def experts_of(recipe: Recipe) -> list[tuple[int, ...]]:
    return [kept.ffn.experts for kept in recipe.layers if isinstance(kept.ffn, KeptExperts)]


@settings(max_examples=15)
@given(seeds)
def test_an_expert_costs_what_it_adds_to_the_stream(seed: int) -> None:
    config = random_config(np.random.default_rng(seed), experts=True)
    model = random_checkpoint(config, seed, tokenizer=True)
    windows = windows_of(model)
    captured: list[dict[tuple[int, str], np.ndarray]] = []
    for window in windows:
        captured.append({})
        forward(config, model.read_f32, window.tolist(), captured=captured[-1])
    scores = score_model(
        model,
        windows,
        keep_budget(model, 0.6),
        criterion="activation",
        structures=("experts",),
        protect=frozenset(),
        threads=1,
    )
    for index, (layer, found) in enumerate(zip(config.layers, scores, strict=True)):
        assert (found.experts is not None) == isinstance(layer.ffn, RoutedFfnConfig)
        if found.experts is not None:
            sites = ("ffn_experts", "ffn_neurons", "ffn_input", "layer_output")
            added, neurons, entered, after = (
                np.concatenate([one[index, site] for one in captured]) for site in sites
            )
            added /= norm_divisors(model, index, entered, neurons)
            added /= np.linalg.norm(after, axis=1, keepdims=True)
            expected = np.mean(added**2, axis=0)
            scale = expected.max()
            np.testing.assert_allclose(found.experts, expected, rtol=0, atol=2e-3 * scale)


def test_an_expert_that_never_runs_goes_first() -> None:
    model = routed_model()
    recipe = plan(
        model,
        keep=0.9,
        structures=("experts",),
        allocation="global",
        protect=(),
        calibration=TEXT,
    )
    gone = [set(range(6)) - set(kept) for kept in experts_of(recipe)]
    assert sum(map(len, gone)) > 0
    assert all(lost in (set(), {IDLE}) for lost in gone)
    slim = prune(model, recipe, repair="none")
    tokens = list(range(60))
    before, after = (Engine(one, weights="f32").score([tokens])[0] for one in (model, slim))
    np.testing.assert_array_equal(before, after)


def test_by_loss_the_expert_goes_whose_loss_is_lowest() -> None:
    model = routed_model(layers=2)
    windows = windows_of(model)

    def scores(left: tuple[int, ...], index: int) -> float:
        mask = Mask(experts={index: left})
        found = Engine(model).score(list(windows), mask=mask)
        return float(np.mean(np.concatenate(found), dtype=np.float64))

    removals = [(index, expert) for index in range(2) for expert in range(6)]
    best = max(removals, key=lambda one: scores(tuple(e for e in range(6) if e != one[1]), one[0]))
    found = score_model(
        model,
        windows,
        keep_budget(model, 0.95),
        criterion="greedy_loss",
        structures=("experts",),
        protect=frozenset(),
        threads=1,
    )
    costs = {
        (index, expert): float(rated.experts[expert])
        for index, rated in enumerate(found)
        if rated.experts is not None
        for expert in range(6)
    }
    assert min(costs, key=lambda one: costs[one]) == best


@pytest.mark.parametrize("allocation", ["global", "uniform"])
@pytest.mark.parametrize("structures", [("experts",), ("neurons",), ("experts", "neurons")])
def test_plans_meet_their_budget_and_empty_no_expert(
    structures: tuple[str, ...], allocation: str
) -> None:
    model = routed_model()
    recipe = plan(
        model,
        keep=0.6,
        structures=structures,
        allocation=allocation,  # type: ignore[arg-type]
        protect=(),
        calibration=TEXT,
    )
    assert (0.55 if "neurons" in structures else 0.5) < kept_share(model, recipe) <= 0.6
    for kept in recipe.layers:
        assert isinstance(kept.ffn, KeptExperts)
        assert min(map(len, kept.ffn.neurons)) > 0
    if structures == ("experts",) and allocation == "uniform":
        counts = [len(kept) for kept in experts_of(recipe)]
        assert max(counts) - min(counts) <= 1
    with pytest.raises(BudgetError, match="cannot be met"):
        plan(model, keep=0.01, structures=structures, protect=(), calibration=TEXT)


def test_fewer_experts_than_a_token_ran_leave_all_of_them() -> None:
    model = routed_model(layers=1)
    slim = prune(model, explicit(model, experts={0: (4,)}), repair="none")
    ffn = slim.config.layers[-1].ffn
    assert isinstance(ffn, RoutedFfnConfig)
    assert (ffn.experts, ffn.top_k) == ((48,), 1)


def test_repair_refits_experts_on_the_tokens_that_run_them() -> None:
    """The neurons that go are nearly copies of those that stay."""
    model = with_twins(routed_model(layers=2))
    letters = np.random.default_rng(1).choice(list("abcdefghijklm nopqrstuvwxyz."), 4000)
    recipe = explicit(model, expert_neurons={0: {0: range(24), 3: range(24), 4: range(24)}})
    bare = prune(model, recipe, repair="none")
    slim = prune(model, recipe, calibration=["".join(letters)])
    refitted = {name for name in slim.tensors if not same(slim, bare, name)}
    assert "layers.1.ffn.router.weight" not in refitted
    assert {f"layers.0.ffn.experts.{expert}.down.weight" for expert in (0, 3, 4)} <= refitted
    assert f"layers.1.ffn.experts.{IDLE}.down.weight" not in refitted
    tokens = np.random.default_rng(2).integers(0, model.config.vocab_size, 200)
    whole, cut, repaired = (states(one, tokens) for one in (model, bare, slim))
    assert np.linalg.norm(repaired - whole) < 0.5 * np.linalg.norm(cut - whole)


def test_what_no_text_confirms_is_not_refitted() -> None:
    model = routed_model(layers=2)
    recipe = explicit(model, expert_neurons={0: {IDLE: (0, 1), 3: range(40)}})
    bare = prune(model, recipe, repair="none")
    for repair in ("refit", "mean"):
        slim = prune(model, recipe, repair=repair, calibration=TEXT)
        assert same(slim, bare, f"layers.0.ffn.experts.{IDLE}.down.weight")
        assert not same(slim, bare, "layers.0.ffn.experts.3.down.weight")
        assert same(slim, bare, "layers.1.ffn.router.weight")


def test_mean_compensation_keeps_the_mean_of_an_expert() -> None:
    model = routed_model(layers=1)
    recipe = explicit(model, expert_neurons={0: {3: range(20)}})
    slim = prune(model, recipe, repair="mean", calibration=TEXT, tokens=600)
    bare = prune(model, recipe, repair="none")
    windows = np.concatenate(in_parts(calibration_windows(model, TEXT, 600, 0, 1, silent), 4))
    whole, cut, repaired = (
        np.mean([states(one, window).mean(axis=0) for window in windows], axis=0)
        for one in (model, bare, slim)
    )
    assert difference(repaired, whole) < 1e-4
    assert difference(cut, whole) > 1e-3


def test_ragged_experts_are_saved_and_loaded(tmp_path: object) -> None:
    model = routed_model(layers=2)
    recipe = explicit(model, experts={0: (0, 5), 1: (1, 2, 3)}, expert_neurons={1: {2: (7, 8, 40)}})
    slim = prune(model, recipe, repair="none")
    save(slim, f"{tmp_path}/slim")
    read = load(f"{tmp_path}/slim")
    assert read.fingerprint == slim.fingerprint
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_neurons_of_every_expert_are_those_of_the_largest_weights() -> None:
    model = routed_model(layers=1)
    loud = model.read("layers.0.ffn.experts.3.down.weight").copy()
    loud[:, 11] *= 50
    model = model.with_tensors({"layers.0.ffn.experts.3.down.weight": loud})
    (kept,) = explicit(model, neurons=1).layers
    assert isinstance(kept.ffn, KeptExperts)
    assert kept.ffn.experts == tuple(range(6))
    assert kept.ffn.neurons[3] == (11,)
    assert all(len(own) == 1 for own in kept.ffn.neurons)


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"experts": {0: (6,)}}, "0 to 5, found 6"),
        ({"experts": {1: (0,)}}, "layer 1 has no experts"),
        ({"experts": {9: (0,)}}, "layers 0 to 1, found 9"),
        ({"neurons": {0: (1,)}}, "use expert_neurons"),
        ({"expert_neurons": {0: {1: (48,)}}}, "0 to 47, found 48"),
        ({"expert_neurons": {0: {1: ()}}}, "expert 1 keeps no neuron"),
    ],
)
def test_lists_must_fit(lists: dict[str, Any], message: str) -> None:
    routed = routed_model(layers=1).config
    layers = (*routed.layers, LayerConfig(None, FfnConfig(5)))
    model = random_checkpoint(dataclasses.replace(routed, layers=layers), 1)
    with pytest.raises(RecipeError, match=message):
        explicit(model, **lists)


def test_recipes_must_fit() -> None:
    model = routed_model(layers=1)
    recipe = explicit(model, experts={0: (0, 1)})
    good = recipe.to_dict()
    assert good["layers"][0]["ffn"] == {"experts": "0-1", "neurons": ["0-47", "0-47"]}
    bad: tuple[tuple[object, str], ...] = (
        ({"experts": "0-1", "neurons": ["0-47"]}, "a list for each of 2 experts, found 1"),
        ({"experts": "0-1", "neurons": "0-47"}, "expected a list"),
        ({"experts": "0-9", "neurons": ["0"] * 10}, "indices below 6, found 9"),
        ({"experts": "0", "neurons": ["0-48"]}, "of expert 0: expected indices below 48"),
        ({"neurons": "0-4"}, "keeps units where the model has experts"),
    )
    for ffn, message in bad:
        layers = [{**good["layers"][0], "ffn": ffn}]
        with pytest.raises(RecipeError, match=message):
            Recipe.from_dict({**good, "layers": layers}).check(model)


def obs(model: Checkpoint) -> LayerScores:
    """What the units of the only layer cost."""
    (found,) = score_model(
        model,
        windows_of(model, 8, 100),
        keep_budget(model, 0.9),
        criterion="obs",
        structures=("neurons",),
        protect=frozenset(),
    )
    return found


def test_neurons_of_an_only_expert_cost_what_those_of_a_dense_ffn_cost() -> None:
    routed = routed_model(layers=1, experts=1)
    (layer,) = routed.config.layers
    dense = dataclasses.replace(
        routed,
        config=dataclasses.replace(
            routed.config, layers=(dataclasses.replace(layer, ffn=FfnConfig(48)),)
        ),
        tensors={
            name.replace("experts.0.", ""): tensor
            for name, tensor in routed.tensors.items()
            if not name.endswith("router.weight")
        },
    )
    found, expected = obs(routed).neurons, obs(dense).neurons
    assert found is not None
    assert expected is not None
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_neurons_of_an_expert_that_never_runs_cost_least() -> None:
    neurons = obs(routed_model(layers=1)).neurons
    assert neurons is not None
    costs = neurons.reshape(6, 48)
    others = np.delete(costs, IDLE, axis=0)
    assert costs[IDLE].max() < others.min()


@pytest.mark.parametrize("criterion", ["obs", "loss"])
@pytest.mark.parametrize("structures", [("experts", "neurons"), ("kv_groups", "experts")])
def test_units_of_experts_go_by_their_error(
    criterion: Literal["obs", "loss"], structures: tuple[str, ...]
) -> None:
    model = routed_model(layers=3)
    recipe = plan(
        model, keep=0.8, criterion=criterion, structures=structures, calibration=TEXT, tokens=600
    )
    assert 0.72 < kept_share(model, recipe) <= 0.8


def test_more_effort_searches_among_experts_too() -> None:
    model = routed_model(layers=3)
    recipe = plan(model, keep=0.8, effort="balanced", calibration=TEXT, tokens=600)
    assert 0.75 < kept_share(model, recipe) <= 0.8


def test_a_variant_has_fewer_neurons_and_one_of_each_expert_at_least() -> None:
    ffn = RoutedFfnConfig((3, 4), top_k=1)
    rated = LayerScores(
        neurons=np.array([5.0, 1.0, 9.0, 2.0, 3.0, 4.0, 8.0]), experts=np.array([20.0, 30.0])
    )
    kept = KeptExperts((1,), ((0, 2, 3),))
    (fewer, less), (whole, more) = expert_variants(ffn, kept, rated, 0.3)
    assert fewer == KeptExperts((1,), ((3,),))
    assert less == 2 + 4
    assert whole == KeptExperts((0, 1), ((0, 1, 2), (0, 1, 2, 3)))
    assert more == -3 - 20
    assert [one for one, _ in expert_variants(ffn, fewer, rated, 0.9)] == [whole]


def test_no_expert_is_dropped_for_time() -> None:
    model = routed_model(layers=1)
    with pytest.raises(ConfigError, match="with an expert less a token runs as many"):
        plan(model, speedup=1.2, structures=("experts",), calibration=TEXT)


@pytest.mark.parametrize("zeros", METHODS)
@pytest.mark.parametrize("repair", ["none", "refit"])
def test_experts_get_zeros_and_routers_none(
    zeros: Method, repair: Literal["none", "refit"]
) -> None:
    model = routed_model(layers=2)
    everything = Recipe.identity(model)
    slim = prune(
        model, everything, repair=repair, sparsity=0.5, zeros=zeros, calibration=TEXT, tokens=600
    )
    for name in layer_sizes(model.config):
        assert np.mean(slim.read(name) == 0) == pytest.approx(0.5, abs=0.02)
    assert same(slim, model, "layers.0.ffn.router.weight")


def test_zeros_of_experts_are_made_up_for() -> None:
    model = routed_model(layers=2)
    zeros = Zeros("magnitude", Pattern(), dict.fromkeys(layer_sizes(model.config), 0.5))
    tokens = windows_of(model, 1, 200)[0]
    whole, cut, repaired = (
        states(one, tokens)
        for one in (
            model,
            fill(model, zeros, windows_of(model, 24, 64), refit=False),
            fill(model, zeros, windows_of(model, 24, 64), refit=True),
        )
    )
    assert np.linalg.norm(repaired - whole) < 0.9 * np.linalg.norm(cut - whole)


def test_zeros_follow_experts_to_their_new_places() -> None:
    model = routed_model(layers=2)
    shares = {name: 0.01 * i for i, name in enumerate(layer_sizes(model.config))}
    whole = Recipe.identity(model)
    half = dataclasses.replace(whole, zeros=Zeros("magnitude", Pattern(), shares))
    second = explicit(model, drop_layers=(0,), experts={1: (2, 5)})
    moved = half.then(second).zeros
    assert moved is not None
    left = set(layer_sizes(apply(model, second).config))
    assert set(moved.shares) == left
    name = "layers.{}.ffn.experts.{}.up.weight"
    assert moved.shares[name.format(0, 1)] == shares[name.format(1, 5)]


def test_depth_and_channels_of_models_with_experts_are_cut() -> None:
    model = routed_model(layers=3)
    shallow = plan(model, keep=0.7, structures=("layers", "ffn"), calibration=TEXT, tokens=600)
    assert kept_share(model, shallow) <= 0.7
    narrow = dataclasses.replace(Recipe.identity(model), channels=tuple(range(24)))
    slim = prune(model, narrow, calibration=TEXT, tokens=600)
    assert slim.config.n_channels == 24
    assert slim.read("layers.0.ffn.router.weight").shape == (6, 24)
    assert np.isfinite(Engine(slim, weights="f32").score([list(range(40))])[0]).all()
