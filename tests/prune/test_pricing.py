from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from prune.cases import random_model, seeds
from prune.test_allocate import kept_share, uniform_model
from prune.test_importance import rate, windows_of
from prune.test_pipeline import TEXT, random_text
from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.prune import apply, explicit, plan
from slimformer.prune.budget import keep_budget
from slimformer.prune.drafts import Part
from slimformer.prune.importance.scores import LayerScores
from slimformer.prune.pricing import (
    LOWEST,
    SPREAD,
    draft_of,
    in_nats,
    measure_prices,
    smooth,
    temper,
    towards,
)
from slimformer.prune.recipe import keep_all
from slimformer.prune.structures import STRUCTURES, Structure

UNITS: tuple[Structure, ...] = ("kv_groups", "neurons")


def prices_of(model: Checkpoint, threads: int = 1, keep: float = 0.8) -> dict[Part, float]:
    windows = windows_of(model, 12)
    scores = rate(model, "obs", threads)
    draft = draft_of(model.config, scores, keep_budget(model, keep), UNITS, frozenset())
    return measure_prices(model, scores, draft, windows, structures=UNITS, threads=threads)


def test_an_error_that_the_head_does_not_see_costs_little() -> None:
    """The last FFN writes to a channel that the final norm all but switches off."""
    model = uniform_model(layers=3, neurons=64)
    down = np.zeros_like(model.read("layers.2.ffn.down.weight"))
    down[5] = 0.1 * np.random.default_rng(0).normal(size=64)
    gain = model.read("final_norm.weight").copy()
    loud = model.with_tensors({"layers.2.ffn.down.weight": down})
    gain[5] = 1e-3
    faint = loud.with_tensors({"final_norm.weight": gain})
    last: Part = (2, "ffn")
    # Nothing has gone from the draft: there is no drift that fewer neurons repair less of.
    assert prices_of(faint, keep=1.0)[last] < 0.1 * prices_of(loud, keep=1.0)[last]


def test_what_loses_nothing_has_no_price() -> None:
    model = uniform_model(layers=2, neurons=64)
    scores = rate(model, "obs")
    draft = draft_of(model.config, scores, keep_budget(model, 0.8), ("neurons",), frozenset())
    found = measure_prices(model, scores, draft, windows_of(model, 12), structures=("neurons",))
    assert found.keys() == {(0, "ffn"), (1, "ffn")}


def test_prices_do_not_depend_on_threads() -> None:
    model = uniform_model(layers=3, neurons=64)
    assert prices_of(model, 1) == prices_of(model, 2)


@settings(max_examples=10)
@given(seeds)
def test_any_model_has_prices(seed: int) -> None:
    model = random_model(np.random.default_rng(seed))
    found = prices_of(model)
    assert all(np.isfinite(price) for price in found.values())


def test_prices_are_means_over_the_layers_around() -> None:
    measured: dict[Part, float] = {(index, "ffn"): 2.0 for index in range(20)}
    assert smooth(measured) == pytest.approx(measured)
    measured[10, "ffn"] = 16.0
    measured[10, "attention"] = 5.0
    found = smooth(measured)
    for distance in (-3, -2, -1, 0, 1, 2, 3):
        assert found[10 + distance, "ffn"] == pytest.approx(2.0 * 8.0 ** SPREAD[3 + distance])
    assert found[14, "ffn"] == pytest.approx(2.0)
    assert found[10, "attention"] == pytest.approx(5.0)
    measured[0, "ffn"] = -1.0  # chance
    share = SPREAD[3] / sum(SPREAD[3:])
    assert smooth(measured)[0, "ffn"] == pytest.approx(2.0 * LOWEST**share)
    assert smooth({}) == {}


def test_prices_are_drawn_towards_the_usual_one() -> None:
    measured: dict[Part, float] = {(0, "ffn"): 4.0, (1, "ffn"): 1.0, (2, "ffn"): 0.25}
    assert temper(measured) == {(0, "ffn"): 2.0, (1, "ffn"): 1.0, (2, "ffn"): 0.5}
    chance: dict[Part, float] = {(0, "ffn"): -1.0, (1, "ffn"): 1.0}
    assert temper(chance)[0, "ffn"] == pytest.approx(LOWEST**0.5)
    assert temper({(0, "ffn"): -1.0}) == {(0, "ffn"): 1.0}


def test_prices_move_by_ratios_and_keep_their_level() -> None:
    prices: dict[Part, float] = {(0, "ffn"): 2.0, (1, "ffn"): 2.0, (2, "ffn"): 8.0}
    measured: dict[Part, float] = {(0, "ffn"): 4.0, (1, "ffn"): 1.0}
    assert towards(prices, measured, 0.0) == pytest.approx(prices)
    moved = towards(prices, measured, 0.5)
    assert moved[0, "ffn"] / moved[1, "ffn"] == pytest.approx(2.0)
    assert moved[2, "ffn"] == pytest.approx(8.0)  # it was not measured
    assert towards(prices, {(0, "ffn"): -1.0}, 0.5) == prices


def test_scores_are_priced_by_sub_block() -> None:
    neurons = np.linspace(1, 2, 40)
    (priced,) = in_nats((LayerScores(ffn=3.0, neurons=neurons),), {(0, "ffn"): 0.5})
    assert (priced.ffn, priced.layers, priced.attention) == (1.5, 1.5, None)
    assert priced.neurons is not None
    assert np.array_equal(priced.neurons, neurons / 2)


def test_a_draft_is_whole_where_units_cannot_meet_the_budget() -> None:
    model = uniform_model(layers=3, neurons=64)
    whole = tuple(keep_all(index, layer) for index, layer in enumerate(model.config.layers))
    scores = rate(model, "obs")
    for keep, structures in ((0.5, ("layers",)), (0.01, UNITS)):
        draft = draft_of(model.config, scores, keep_budget(model, keep), structures, frozenset())
        assert draft == whole


def test_a_plan_in_nats_meets_its_budget() -> None:
    model = uniform_model(layers=4, neurons=160)
    recipes = {
        plan(
            model, keep=0.75, criterion="loss", structures=UNITS, calibration=TEXT, threads=threads
        ).to_json()
        for threads in (1, 2, 2)
    }
    assert len(recipes) == 1
    recipe = plan(model, keep=0.75, criterion="loss", structures=STRUCTURES, calibration=TEXT)
    assert 0.7 < kept_share(model, recipe) <= 0.75


def test_a_pruned_model_can_be_planned_again() -> None:
    model = uniform_model(layers=4, neurons=160)
    once = apply(model, explicit(model, drop_ffn=[1], drop_attention=[2], neurons=128))
    recipe = plan(once, keep=0.8, criterion="loss", structures=UNITS, calibration=random_text(1))
    assert kept_share(once, recipe) <= 0.8
