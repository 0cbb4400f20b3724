from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from prune.cases import random_model, seeds
from prune.test_allocate import kept_share, uniform_model
from prune.test_importance import rate, windows_of
from prune.test_pipeline import TEXT
from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.prune import Recipe, explicit, plan
from slimformer.prune.allocate import allocate
from slimformer.prune.budget import keep_budget
from slimformer.prune.drafts import Draft, Part, Trial, Walk
from slimformer.prune.pricing import Prices, in_nats
from slimformer.prune.recipe import keep_all
from slimformer.prune.search import draft_from, search
from slimformer.prune.structures import Structure
from slimformer.prune.windows import split

NEURONS: tuple[Structure, ...] = ("neurons",)


def run(model: Checkpoint, drafts: list[Draft], threads: int = 1) -> Trial:
    fit, trial = split(windows_of(model, 12), 0.25)
    scores = rate(model, "obs")
    walk = Walk(model, scores, drafts, fit, trial, varied=frozenset(), threads=threads)
    return walk.run(None, "", lambda *_: None)


def whole(model: Checkpoint) -> Draft:
    return [keep_all(index, layer) for index, layer in enumerate(model.config.layers)]


def test_drafts_that_lose_more_diverge_more() -> None:
    model = uniform_model(layers=3, neurons=64)
    fewer = draft_from(model, explicit(model, neurons=40))
    without = draft_from(model, explicit(model, drop_ffn=[1], drop_attention=[0], neurons=40))
    found = run(model, [whole(model), fewer, fewer, without]).drafts
    assert found[0] == pytest.approx(0.0, abs=1e-6)
    assert found[0] < found[1] == found[2] < found[3]


def test_drafts_run_without_the_pairs_that_they_lose() -> None:
    model = uniform_model(layers=3, neurons=64)
    layers = range(len(model.config.layers))
    fewer, fewest = (
        draft_from(model, explicit(model, rotary_pairs=dict.fromkeys(layers, pairs)))
        for pairs in ((0, 1, 3), (1,))
    )
    found = run(model, [whole(model), fewest, fewer, whole(model), fewest]).drafts
    assert found[0] == found[3] == pytest.approx(0.0, abs=1e-6)
    assert 1e-6 < found[2] < found[1] == found[4]
    assert run(model, [fewest]).drafts[0] > 1e-6


@settings(max_examples=8)
@given(seeds)
def test_drafts_of_any_model_run(seed: int) -> None:
    model = random_model(np.random.default_rng(seed))
    without = draft_from(model, explicit(model, drop_layers=range(len(model.config.layers))))
    found = run(model, [whole(model), without]).drafts
    assert found[0] < 1e-5
    assert np.isfinite(found[1])


def test_a_draft_says_what_stays_of_layers_that_go() -> None:
    model = uniform_model(layers=3, neurons=64)
    draft = draft_from(model, explicit(model, drop_layers=[1]))
    assert [layer.source for layer in draft] == [0, 1, 2]
    assert draft[1].attention is None
    assert draft[1].ffn is None


def searched(model: Checkpoint, prices: Prices, rounds: int, threads: int = 1) -> Draft:
    scores = rate(model, "obs")
    budget = keep_budget(model, 0.8)

    def choose(prices: Prices) -> Recipe:
        kept = allocate(
            model.config,
            in_nats(scores, prices),
            budget,
            structures=NEURONS,
            allocation="global",
            protect=frozenset(),
        )
        return Recipe(model.name, model.fingerprint, kept)

    found = search(
        model,
        scores,
        prices,
        choose,
        windows_of(model, 16),
        rounds=rounds,
        structures=NEURONS,
        journal=lambda name: None,
        threads=threads,
    )
    return draft_from(model, choose(found))


def test_search_mends_wrong_prices() -> None:
    """What is far too cheap at first loses everything; drafts show that this is worse."""
    model = uniform_model(layers=3, neurons=128)
    wrong: dict[Part, float] = {(0, "ffn"): 1.0, (1, "ffn"): 1e-3, (2, "ffn"): 1.0}
    before, after = (searched(model, wrong, rounds) for rounds in (0, 3))
    assert after == searched(model, wrong, 3, threads=2)
    assert run(model, [after, before]).drafts[0] < run(model, [before]).drafts[0]
    left = [len(draft[1].ffn.neurons) for draft in (before, after)]  # type: ignore[union-attr]
    assert left[0] < left[1]


@pytest.mark.parametrize(
    "interrupted", ["round 2 of 2: price layers", "round 2 of 2: compare drafts"]
)
def test_an_interrupted_search_ends_the_same(tmp_path: Path, interrupted: str) -> None:
    model = uniform_model(layers=3, neurons=48)
    tokens = 2048
    whole = plan(model, keep=0.9, calibration=TEXT, effort="balanced", tokens=tokens)

    def interrupt(what: str, done: int, total: int) -> None:
        if (what, done) == (interrupted, 2):
            raise KeyboardInterrupt

    def check(what: str, done: int, total: int) -> None:
        assert what != "measure layers"

    def go_on(progress: object) -> Recipe:
        return plan(
            model,
            keep=0.9,
            calibration=TEXT,
            effort="balanced",
            tokens=tokens,
            state=tmp_path,
            progress=progress,  # type: ignore[arg-type]
        )

    with pytest.raises(KeyboardInterrupt):
        go_on(interrupt)
    assert go_on(lambda *_: None) == whole


def test_a_plan_that_searches_meets_its_budget() -> None:
    model = uniform_model(layers=3, neurons=96)
    recipe = plan(model, keep=0.8, calibration=TEXT, effort="balanced", tokens=2048)
    assert 0.7 < kept_share(model, recipe) <= 0.8
