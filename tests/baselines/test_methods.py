from __future__ import annotations

import numpy as np
import pytest

from prune.test_allocate import uniform_model
from prune.test_pipeline import drift, random_text
from reference.forward import forward
from slimformer.baselines import METHODS, Task
from slimformer.checkpoint import cast
from slimformer.config import FfnConfig, LinkConfig
from slimformer.errors import BudgetError
from slimformer.prune import Recipe, apply
from slimformer.prune.calibrate import make_windows

WITH_TORCH = {"LLM-Pruner"}
LAYERS = {"ShortGPT", "SLEB", "ReplaceMe", "LinearPatch"}
MODEL = uniform_model(layers=6, neurons=48)


def task(keep: float = 0.8, tokens: int = 2048) -> Task:
    windows = make_windows(MODEL, random_text(1), tokens=tokens, seed=0, window=64)
    return Task(MODEL, keep, windows, threads=1)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.parity] if n in WITH_TORCH else []) for n in METHODS],
)
def test_every_method_meets_the_budget_and_gives_a_model_that_runs(name: str) -> None:
    slim = METHODS[name](task())
    share = slim.config.non_embedding_parameters() / MODEL.config.non_embedding_parameters()
    # The biases that FLAP adds are not counted in its budget.
    assert 0.6 < share <= (0.82 if name == "FLAP" else 0.8)
    assert np.isfinite(forward(slim.config, slim.read_f32, [5, 7, 9])).all()
    assert (len(slim.config.layers) < 6) == (name in LAYERS)
    if name != "LinearPatch":
        assert slim.recipe is not None
        cut = apply(MODEL, Recipe.from_dict(slim.recipe))
        assert cut.config.non_embedding_parameters() <= 0.8 * MODEL.config.parameters()
    assert METHODS[name](task()).fingerprint == slim.fingerprint


@pytest.mark.parametrize("name", ["magnitude", "Wanda-sp", "OSSCAR"])
def test_all_layers_lose_the_same_share(name: str) -> None:
    layers = METHODS[name](task()).config.layers
    counts = {layer.ffn.n_neurons for layer in layers if isinstance(layer.ffn, FfnConfig)}
    assert len(counts) == 1


def test_reconstruction_beats_selection_alone() -> None:
    with_it, without = (METHODS[name](task(tokens=8192)) for name in ("OSSCAR", "Wanda-sp"))
    assert drift(MODEL, with_it) < drift(MODEL, without)


def test_a_patch_beats_a_cut() -> None:
    cut = METHODS["ShortGPT"](task(tokens=8192))
    assert drift(MODEL, METHODS["LinearPatch"](task(tokens=8192))) < drift(MODEL, cut)


def test_a_patch_is_a_link() -> None:
    slim = METHODS["LinearPatch"](task())
    links = [layer for layer in slim.config.layers if isinstance(layer.attention, LinkConfig)]
    assert len(links) == 1
    assert links[0].ffn is None


def test_flap_makes_up_for_the_mean_of_what_went() -> None:
    slim = METHODS["FLAP"](task())
    assert any(name.endswith("down.bias") for name in slim.tensors)


def test_results_are_stored_as_pruned_models_are() -> None:
    half = Task(cast(MODEL, "bf16"), 0.8, task().windows, threads=1)
    for name in METHODS.keys() - WITH_TORCH:
        assert {tensor.dtype for tensor in METHODS[name](half).tensors.values()} == {"bf16"}


@pytest.mark.parametrize("name", sorted(METHODS.keys() - WITH_TORCH))
def test_budgets_out_of_reach_are_refused(name: str) -> None:
    with pytest.raises(BudgetError):
        METHODS[name](task(keep=0.0001))
