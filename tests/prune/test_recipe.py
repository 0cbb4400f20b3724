from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prune.cases import random_model, random_recipe, seeds
from slimformer.config import LinkConfig
from slimformer.errors import RecipeError
from slimformer.prune.indices import from_runs, to_runs
from slimformer.prune.recipe import KeptAttention, KeptFfn, KeptLayer, NewLink, Recipe
from slimformer.prune.surgery import apply


@given(st.sets(st.integers(0, 3000), min_size=1), st.randoms(use_true_random=False))
def test_runs_say_the_same_indices(units: set[int], random: Random) -> None:
    indices = tuple(sorted(units))
    assert from_runs(to_runs(indices), "here") == indices
    shuffled = tuple(random.sample(indices, len(indices)))
    assert from_runs(to_runs(shuffled), "here") == shuffled


def test_runs_are_short() -> None:
    assert to_runs((*range(64), 70, 72, 73)) == "0-63,70,72-73"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1,",
        "a",
        "-1",
        "3-1",
        "1,1",
        "0-5,5",
        "5,0-5",
        "01",
        "1 ,2",
        "0-9999999",
        "1048576",
        "٣",
    ],
)
def test_bad_runs_are_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="somewhere: "):
        from_runs(text, "somewhere")


@given(seeds)
def test_json_gives_the_recipe_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    recipe = random_recipe(rng, random_model(rng))
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert Recipe.from_dict(json.loads(recipe.to_json())) == recipe


@given(seeds)
def test_a_recipe_fits_its_own_model_only(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model, other = random_model(rng), random_model(rng)
    recipe = random_recipe(rng, model)
    recipe.check(model)
    with pytest.raises(RecipeError, match=other.fingerprint[:16]):
        recipe.check(other)


def plain() -> dict[str, Any]:
    return {
        "version": 1,
        "source": {"name": "m", "fingerprint": "f"},
        "vocabulary": "0-255,300",
        "channels": "0-511",
        "layers": [
            {
                "source": 2,
                "attention": {"heads": "0-1", "kv_heads": "0"},
                "ffn": {"neurons": "0-7"},
            },
            {"source": 5, "attention": "link", "ffn": None},
        ],
    }


def change(*path: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def apply(value: Any) -> None:
        for key in path[:-1]:
            value = value[key]
        value[path[-1]] = to

    return apply


HOSTILE = {
    "version of the future": (change("version", to=2), "version"),
    "version as truth": (change("version", to=True), "version"),
    "unknown key": (change("extra", to=1), "unknown keys"),
    "unknown key below": (change("layers", 0, "ffn", "x", to=1), r"layers\[0\]\.ffn"),
    "source is text": (change("source", to="m"), "source"),
    "fingerprint is a number": (change("source", "fingerprint", to=3), "source.fingerprint"),
    "vocabulary as list": (change("vocabulary", to=[0]), "recipe: vocabulary"),
    "vocabulary unsorted": (change("vocabulary", to="5,1"), "recipe: vocabulary"),
    "channels unsorted": (change("channels", to="5,1"), "recipe: channels"),
    "layers is an object": (change("layers", to={}), "layers"),
    "too many layers": (change("layers", to=[{}] * 5000), "layers"),
    "layer is a number": (change("layers", 1, to=3), r"layers\[1\]"),
    "layer twice": (change("layers", 1, "source", to=2), r"layers\[1\]\.source"),
    "layer below zero": (change("layers", 0, "source", to=-1), r"layers\[0\]\.source"),
    "layer as fraction": (change("layers", 0, "source", to=1.0), r"layers\[0\]\.source"),
    "layer beyond all": (change("layers", 1, "source", to=10**9), r"layers\[1\]\.source"),
    "heads as list": (
        change("layers", 0, "attention", "heads", to=[0]),
        r"layers\[0\]\.attention\.heads",
    ),
    "attention is another word": (
        change("layers", 0, "attention", to="lonk"),
        r"layers\[0\]\.attention",
    ),
    "a link of a kind that is none": (
        change("layers", 1, "ffn", to={"link": ["full"], "rank": None}),
        r"layers\[1\]\.ffn: link kind",
    ),
    "a link without rank": (
        change("layers", 1, "ffn", to={"link": "low_rank", "rank": None}),
        r"layers\[1\]\.ffn: link",
    ),
    "a link of rank 0": (
        change("layers", 1, "ffn", to={"link": "low_rank", "rank": 0}),
        r"layers\[1\]\.ffn: link rank",
    ),
    "a link with more to it": (
        change("layers", 1, "ffn", to={"link": "full", "rank": None, "x": 1}),
        r"layers\[1\]\.ffn: unknown keys",
    ),
    "neurons twice": (
        change("layers", 0, "ffn", "neurons", to="5,1,5"),
        r"layers\[0\]\.ffn\.neurons",
    ),
    "neurons empty": (
        change("layers", 0, "ffn", "neurons", to=""),
        r"layers\[0\]\.ffn\.neurons",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_recipes_say_where(name: str) -> None:
    value = plain()
    Recipe.from_dict(value)
    spoil, where = HOSTILE[name]
    spoil(value)
    with pytest.raises(RecipeError, match=where):
        Recipe.from_dict(value)


def test_a_recipe_does_not_fill_the_memory() -> None:
    value = plain()
    layer = {"attention": None, "ffn": {"neurons": "0-1048575"}}
    value["layers"] = [{"source": i, **layer} for i in range(4000)]
    with pytest.raises(RecipeError, match="in all"):
        Recipe.from_dict(value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"version": 1, "version": 1}', "[" * 10**5])
def test_text_that_is_no_recipe(text: str) -> None:
    with pytest.raises(RecipeError, match="recipe"):
        Recipe.from_json(text)


def test_indices_are_checked_without_json_too() -> None:
    for neurons in ((), (1, 1), (-1,), (1 << 20,), (0.0,), (True,)):
        with pytest.raises(RecipeError, match=r"layers\[0\]\.ffn\.neurons"):
            Recipe("m", "f", (KeptLayer(0, None, KeptFfn(neurons)),))  # type: ignore[arg-type]


@given(seeds)
def test_heads_bring_their_kv_heads(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = random_model(rng, ragged=False)
    attention = KeptAttention((0,), (1 << 19,))
    recipe = Recipe(model.name, model.fingerprint, (KeptLayer(0, attention, None),))
    with pytest.raises(RecipeError, match="kv_heads"):
        recipe.check(model)


def test_a_recipe_is_as_short_as_what_it_says() -> None:
    whole = Recipe("m", "f", ())
    assert "vocabulary" not in whole.to_dict()
    some = Recipe("m", "f", (), tuple(range(256)), channels=(1, 2, 3))
    assert some.to_dict()["vocabulary"] == "0-255"
    assert some.to_dict()["channels"] == "1-3"
    assert whole.then(some) == some.then(whole) == some
    fewer = Recipe("m", "g", (), (7,), channels=(0, 2))
    assert some.then(fewer) == Recipe("m", "f", (), (7,), channels=(1, 3))


def test_tokens_and_channels_that_a_model_lacks_are_refused() -> None:
    first = Recipe("m", "f", (), (3, 5))
    with pytest.raises(RecipeError, match="vocabulary"):
        first.then(Recipe("m", "g", (), (2,)))
    model = random_model(np.random.default_rng(0))
    beyond = Recipe(model.name, model.fingerprint, (), (model.config.vocab_size,))
    with pytest.raises(RecipeError, match="vocabulary"):
        beyond.check(model)
    wide = Recipe(model.name, model.fingerprint, (), channels=(model.config.n_channels,))
    with pytest.raises(RecipeError, match="channels"):
        wide.check(model)


def test_a_recipe_cannot_keep_what_another_removed() -> None:
    first = Recipe("m", "f", (KeptLayer(3, None, KeptFfn((0, 5))),))
    for second, where in (
        (KeptLayer(1, None, KeptFfn((0,))), "source"),
        (KeptLayer(0, None, KeptFfn((2,))), "neurons"),
        (KeptLayer(0, KeptAttention((0,), (0,)), None), "attention"),
    ):
        with pytest.raises(RecipeError, match=where):
            first.then(Recipe("m", "g", (second,)))


def test_links_take_the_place_of_something_and_are_no_larger() -> None:
    model = random_model(np.random.default_rng(5), ragged=False)
    channels = model.config.n_channels
    link = NewLink(LinkConfig("low_rank", channels))
    there = Recipe(model.name, model.fingerprint, (KeptLayer(0, link, None),))
    there.check(model)
    too_large = NewLink(LinkConfig("low_rank", channels + 1))
    with pytest.raises(RecipeError, match="rank"):
        Recipe(model.name, model.fingerprint, (KeptLayer(0, too_large, None),)).check(model)
    with pytest.raises(RecipeError, match=r"ffn: keeps a new link, but .* nothing"):
        there.then(Recipe("m", "g", (KeptLayer(0, None, link),)))
    with pytest.raises(RecipeError, match="a new link where the model has nothing"):
        Recipe("m", apply(model, there).fingerprint, (KeptLayer(0, None, link),)).check(
            apply(model, there)
        )


@given(seeds)
def test_composition_is_associative(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = random_model(rng)
    a = random_recipe(rng, model)
    b = random_recipe(rng, apply(model, a))
    c = random_recipe(rng, apply(apply(model, a), b))
    assert a.then(b).then(c) == a.then(b.then(c))
    assert Recipe.identity(model).then(a) == a
