from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prune.cases import random_model, seeds
from reference.models import random_checkpoint
from slimformer.checkpoint import cast
from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.config import (
    AttentionConfig,
    FfnConfig,
    LayerConfig,
    LinkConfig,
    ModelConfig,
    RopeConfig,
    RoutedFfnConfig,
)
from slimformer.errors import BudgetError, ConfigError
from slimformer.prune import apply, plan
from slimformer.prune.recipe import KeptAttention, KeptFfn, Recipe, keep_all
from slimformer.prune.structures import STRUCTURES, parameters_price


def uniform_model(layers: int = 6, neurons: int = 320) -> Checkpoint:
    attention = AttentionConfig(
        n_heads=6,
        n_kv_heads=3,
        head_dim=8,
        value_dim=8,
        q_to_kv=(0, 0, 1, 1, 2, 2),
        scale=8**-0.5,
        rope=RopeConfig(8),
    )
    layer = LayerConfig(attention, FfnConfig(neurons))
    config = ModelConfig("llama", 300, 48, 48, 1e-5, True, 512, (layer,) * layers)
    return random_checkpoint(config, 7, tokenizer=True)


def kept_share(model: Checkpoint, recipe: Recipe) -> float:
    small = apply(model, recipe).config.non_embedding_parameters()
    return small / max(1, model.config.non_embedding_parameters())


@pytest.mark.parametrize("allocation", ["global", "uniform"])
@pytest.mark.parametrize(
    "structures", [("neurons",), ("kv_groups", "neurons"), ("heads", "neurons")]
)
@pytest.mark.parametrize("keep", [0.95, 0.8, 0.61])
def test_with_neurons_the_budget_is_hit_closely(
    allocation: str, structures: tuple[str, ...], keep: float
) -> None:
    model = uniform_model()
    recipe = plan(
        model,
        keep=keep,
        structures=structures,
        criterion="magnitude",
        allocation=allocation,  # type: ignore[arg-type]
    )
    assert keep - 0.005 <= kept_share(model, recipe) <= keep


@settings(max_examples=50)
@given(
    seeds,
    st.sets(st.sampled_from(STRUCTURES), min_size=1),
    st.floats(0.05, 1),
    st.sampled_from(["global", "uniform"]),
)
def test_no_plan_is_above_its_budget(
    seed: int, structures: set[str], keep: float, allocation: str
) -> None:
    model = random_model(np.random.default_rng(seed))
    try:
        recipe = plan(
            model,
            keep=keep,
            structures=sorted(structures),
            criterion="magnitude",
            allocation=allocation,  # type: ignore[arg-type]
        )
    except (BudgetError, ConfigError):
        return
    assert kept_share(model, recipe) <= keep
    by_source = {kept.source: kept for kept in recipe.layers}
    last = len(model.config.layers) - 1
    for index in {0, last} if last >= 0 else set():
        assert by_source[index] == keep_all(index, model.config.layers[index])


def test_keeping_everything_is_the_identity() -> None:
    model = uniform_model()
    for allocation in ("global", "uniform"):
        assert plan(
            model,
            keep=1.0,
            criterion="magnitude",
            allocation=allocation,
        ) == Recipe.identity(model)


def test_uniform_takes_the_same_of_every_layer() -> None:
    model = uniform_model()
    recipe = plan(
        model, keep=0.7, structures=("neurons",), criterion="magnitude", allocation="uniform"
    )
    widths = [
        len(kept.ffn.neurons) for kept in recipe.layers[1:-1] if isinstance(kept.ffn, KeptFfn)
    ]
    assert max(widths) - min(widths) <= 16


def test_whole_layers_go_at_the_nearest_below() -> None:
    model = uniform_model(layers=8)
    recipe = plan(model, keep=0.7, structures=("layers",), criterion="magnitude")
    # Eight equal layers: 5 of 8 is the most that is not above 0.7.
    assert len(recipe.layers) == 5


def test_the_cheapest_goes_first() -> None:
    model = uniform_model(layers=5)
    faint = {
        name: model.read(name) * np.float32(0.01 if ".2.ffn." in name else 1)
        for name in model.tensors
        if "norm" not in name
    }
    model = model.with_tensors(faint)
    recipe = plan(model, keep=0.85, structures=("ffn",), criterion="magnitude")
    assert [kept.source for kept in recipe.layers if kept.ffn is None] == [2]


def test_a_kv_group_goes_with_its_heads() -> None:
    model = uniform_model()
    recipe = plan(
        model, keep=0.95, structures=("kv_groups",), criterion="magnitude", allocation="global"
    )
    for kept in recipe.layers:
        assert isinstance(kept.attention, KeptAttention)
        assert len(kept.attention.heads) == 2 * len(kept.attention.kv_heads)


def test_bytes_are_those_of_the_stored_model() -> None:
    model = cast(uniform_model(), "bf16")
    recipe = plan(
        model, max_bytes=int(0.8 * model.nbytes), structures=("neurons",), criterion="magnitude"
    )
    assert 0.79 * model.nbytes <= apply(model, recipe).nbytes <= 0.8 * model.nbytes


def test_an_impossible_budget_says_what_is_possible() -> None:
    model = uniform_model()
    with pytest.raises(BudgetError, match=r"possible is 0\.\d+ to 1\.0000"):
        plan(model, keep=0.2, structures=("neurons",), criterion="magnitude")
    with pytest.raises(BudgetError, match=r"possible is \d+ bytes"):
        plan(model, max_bytes=1000, structures=("neurons",), criterion="magnitude")
    for keep in (0.0, 1.5, float("nan")):
        with pytest.raises(BudgetError, match="keep"):
            plan(model, keep=keep, criterion="magnitude")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either keep or max_bytes"),
        ({"keep": 0.5, "max_bytes": 5}, "either keep or max_bytes"),
        ({"keep": 0.5, "structures": ("toes",)}, "toes"),
        ({"keep": 0.5, "structures": ()}, "none"),
        ({"keep": 0.5, "criterion": "luck"}, "luck"),
        ({"keep": 0.5, "allocation": "fair"}, "fair"),
        ({"keep": 0.5, "criterion": "greedy_loss", "structures": ("heads",)}, "obs"),
        (
            {
                "keep": 0.5,
                "criterion": "magnitude",
                "structures": ("layers", "heads"),
                "allocation": "uniform",
            },
            "shared out",
        ),
    ],
)
def test_contradictory_settings(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(uniform_model(), **options)  # type: ignore[arg-type]


@given(seeds)
def test_prices_add_up_to_the_model(seed: int) -> None:
    model = random_model(np.random.default_rng(seed))
    config = model.config
    total = config.fixed_parameters()
    for index, layer in enumerate(config.layers):
        attention = layer.attention if isinstance(layer.attention, AttentionConfig) else None
        ffn = layer.ffn if not isinstance(layer.ffn, LinkConfig) else None
        total += parameters_price(config, index).of(
            attention.n_heads if attention else 0,
            attention.n_kv_heads if attention else 0,
            ffn.n_neurons if ffn else 0,
            attention=layer.attention is not None,
            ffn=layer.ffn is not None,
            experts=len(ffn.experts) if isinstance(ffn, RoutedFfnConfig) else 0,
        )
    assert total == config.non_embedding_parameters()
