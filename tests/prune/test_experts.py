"""Experts as a structure: which go, by which criterion, and what is left."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from prune.cases import IDLE, routed_model, seeds
from prune.test_allocate import kept_share
from prune.test_importance import TEXT, norm_divisors, windows_of
from reference.forward import forward
from reference.models import random_checkpoint, random_config
from slimformer.checkpoint import load, save
from slimformer.config import (
    FfnConfig,
    LayerConfig,
    RoutedFfnConfig,
)
from slimformer.engine import Engine, Mask
from slimformer.errors import BudgetError, ConfigError, RecipeError
from slimformer.prune import explicit, plan, prune
from slimformer.prune.budget import keep_budget
from slimformer.prune.importance import score_model
from slimformer.prune.recipe import KeptExperts, Recipe


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


@pytest.mark.parametrize("repair", ["refit", "mean"])
def test_repair_leaves_experts_alone_and_refits_the_rest(repair: str) -> None:
    model = routed_model()
    recipe = explicit(model, heads={1: (0, 2)}, experts={0: (0, 1, 5), 2: (3, 4)}, neurons=40)
    bare = prune(model, recipe, repair="none")
    slim = prune(model, recipe, repair=repair, calibration=TEXT)  # type: ignore[arg-type]
    for name in slim.tensors:
        same = np.array_equal(slim.read(name), bare.read(name))
        assert same or name.endswith("attention.o.weight")
    assert not np.array_equal(
        slim.read("layers.1.attention.o.weight"), bare.read("layers.1.attention.o.weight")
    )


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


def test_what_is_not_done_for_experts_is_refused() -> None:
    model = routed_model(layers=1)
    for criterion in ("loss", "obs"):
        with pytest.raises(ConfigError, match="experts have too many"):
            plan(model, keep=0.9, criterion=criterion)
    with pytest.raises(ConfigError, match="not predicted"):
        plan(model, speedup=1.2, structures=("experts",), calibration=TEXT)
    recipe = plan(
        routed_model(), keep=0.97, criterion="loss", structures=("heads",), calibration=TEXT
    )
    assert math.isclose(kept_share(routed_model(), recipe), 0.97, abs_tol=0.02)


def test_experts_get_zeros_by_magnitude_and_routers_none() -> None:
    model = routed_model(layers=1)
    everything = Recipe.identity(model)
    slim = prune(model, everything, repair="none", sparsity=0.5, zeros="magnitude", sharing="even")
    assert np.mean(slim.read("layers.0.ffn.experts.3.up.weight") == 0) == pytest.approx(
        0.5, abs=0.01
    )
    router = "layers.0.ffn.router.weight"
    np.testing.assert_array_equal(slim.read(router), model.read(router))
    with pytest.raises(ConfigError, match="by magnitude alone"):
        prune(model, everything, sparsity=0.5, calibration=TEXT)


def test_depth_and_channels_of_models_with_experts_are_cut() -> None:
    model = routed_model(layers=3)
    shallow = plan(model, keep=0.7, structures=("layers", "ffn"), calibration=TEXT, tokens=600)
    assert kept_share(model, shallow) <= 0.7
    narrow = dataclasses.replace(Recipe.identity(model), channels=tuple(range(24)))
    slim = prune(model, narrow, calibration=TEXT, tokens=600)
    assert slim.config.n_channels == 24
    assert slim.read("layers.0.ffn.router.weight").shape == (6, 24)
    assert np.isfinite(Engine(slim, weights="f32").score([list(range(40))])[0]).all()
