from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from prune.cases import random_model, seeds
from prune.test_allocate import kept_share, uniform_model
from prune.test_importance import windows_of
from prune.test_pipeline import TEXT, drift, random_text
from reference.forward import forward
from reference.models import random_checkpoint
from slimformer.checkpoint.checkpoint import Checkpoint, Tensor
from slimformer.config import FfnConfig, LinkConfig
from slimformer.errors import BudgetError, ConfigError
from slimformer.progress import Progress, silent
from slimformer.prune import Recipe, apply, plan, prune
from slimformer.prune import journal as journal_module
from slimformer.prune.budget import bytes_budget, keep_budget
from slimformer.prune.cuts import Cut, Replacement, cuts
from slimformer.prune.depth import DepthSearch, model_weight
from slimformer.prune.importance import BLOCKS
from slimformer.prune.journal import Journal
from slimformer.prune.recipe import KeptLayer, NewLink, keep_all
from slimformer.prune.structures import Structure


def idle_attention(layers: int = 4, index: int = 2) -> Checkpoint:
    """A model in which the attention of one layer adds next to nothing."""
    model = uniform_model(layers=layers, neurons=48)
    name = f"layers.{index}.attention.o.weight"
    return model.with_tensors({name: 1e-4 * model.read(name)})


def linear_ffn(layers: int = 4, index: int = 1) -> Checkpoint:
    """A model in which one FFN is as good as a linear map of its normalised input.

    What its gates read is a channel that is the same for all tokens.
    """
    model = uniform_model(layers=layers, neurons=48)
    embedding = model.read("embedding.weight").copy()
    embedding[:, 0] = 20.0
    gate = np.zeros_like(model.read(f"layers.{index}.ffn.gate.weight"))
    gate[:, 0] = 2.0
    return model.with_tensors(
        {"embedding.weight": embedding, f"layers.{index}.ffn.gate.weight": gate}
    )


def constant_ffn(index: int = 1) -> Checkpoint:
    """A model in which one FFN adds its bias to every token, and nothing else."""
    config = uniform_model(layers=4, neurons=48).config
    layers = list(config.layers)
    layers[index] = dataclasses.replace(layers[index], ffn=FfnConfig(48, bias=True))
    config = dataclasses.replace(config, layers=tuple(layers))
    model = random_checkpoint(config, 7, tokenizer=True)
    down = f"layers.{index}.ffn.down"
    bias = np.random.default_rng(1).normal(size=config.n_channels).astype(np.float32)
    nothing = np.zeros_like(model.read(f"{down}.weight"))
    return model.with_tensors({f"{down}.weight": nothing, f"{down}.bias": bias})


def search(
    model: Checkpoint,
    *,
    structures: tuple[Structure, ...] = BLOCKS,
    links: bool = False,
    protect: frozenset[int] = frozenset(),
    journal: Journal | None = None,
    threads: int = 1,
    progress: Progress = silent,
    windows: int = 8,
) -> DepthSearch:
    return DepthSearch(
        model,
        windows_of(model, windows),
        structures=structures,
        links=links,
        protect=protect,
        journal=journal,
        threads=threads,
        progress=progress,
    )


def test_what_does_nothing_goes_first() -> None:
    model = idle_attention()
    share = 1 - 1e-3
    kept = search(model, structures=("attention", "ffn")).choose(keep_budget(model, share))
    assert [layer.attention is None for layer in kept] == [False, False, True, False]
    assert all(layer.ffn is not None for layer in kept)


def test_a_link_stands_in_for_what_is_linear() -> None:
    model = linear_ffn()
    budget = keep_budget(model, 0.97)
    others = frozenset({0, 2, 3})
    one = search(model, structures=("ffn",), links=True, protect=others, windows=48)
    kept = one.choose(budget)
    assert isinstance(kept[1].ffn, NewLink)
    recipe = Recipe(model.name, model.fingerprint, kept)
    assert model_weight(apply(model, recipe).config, budget) <= budget.limit
    slim = prune(model, recipe, calibration=random_text(1), tokens=8192)
    assert drift(model, slim) < 0.1 * drift(model, prune(model, recipe, repair="none"))


def test_a_constant_stands_in_for_what_is_constant() -> None:
    model = constant_ffn()
    others = frozenset({0, 2, 3})
    one = search(model, structures=("ffn",), links=True, protect=others)
    kept = one.choose(keep_budget(model, 0.97))
    assert kept[1].ffn == NewLink(LinkConfig("constant"))
    recipe = Recipe(model.name, model.fingerprint, kept)
    slim = prune(model, recipe, calibration=random_text(1), tokens=2048)
    added = slim.read("layers.1.ffn.link.bias")
    np.testing.assert_allclose(added, model.read("layers.1.ffn.down.bias"), rtol=0, atol=1e-6)
    assert "layers.1.ffn.norm.weight" not in slim.tensors
    assert drift(model, slim) < 1e-9


def test_repair_gains_what_went_in_the_projection_before_it() -> None:
    """The second FFN does what a linear map of the first one's output could."""
    model = uniform_model(layers=3, neurons=48)
    recipe = Recipe(
        model.name,
        model.fingerprint,
        tuple(keep_all(i, layer) for i, layer in enumerate(model.config.layers) if i != 1),
    )
    cut = prune(model, recipe, repair="none")
    slim = prune(model, recipe, calibration=random_text(1), tokens=8192)
    before = "layers.0.ffn.down.weight"
    assert not np.array_equal(slim.read(before), cut.read(before))
    assert drift(model, slim) < drift(model, cut)


@pytest.mark.parametrize("structures", [("layers",), ("attention", "ffn"), BLOCKS])
@pytest.mark.parametrize("links", [False, True])
def test_budgets_are_met_and_the_result_runs(
    structures: tuple[Structure, ...], links: bool
) -> None:
    model = uniform_model(layers=5, neurons=48)
    recipe = plan(model, keep=0.7, structures=structures, links=links, calibration=TEXT)
    slim = prune(model, recipe, calibration=TEXT)
    assert kept_share(model, recipe) <= 0.7
    assert np.isfinite(forward(slim.config, slim.read_f32, [5, 7, 9])).all()
    if not links:
        assert not any(
            isinstance(part, LinkConfig)
            for layer in slim.config.layers
            for part in (layer.attention, layer.ffn)
        )


def test_budgets_of_bytes_count_links() -> None:
    model = uniform_model(layers=5, neurons=48)
    limit = int(0.8 * model.nbytes)
    recipe = plan(model, max_bytes=limit, structures=("ffn",), links=True, calibration=TEXT)
    assert apply(model, recipe).nbytes <= limit
    assert model_weight(apply(model, recipe).config, bytes_budget(model, limit)) <= limit


def test_a_smaller_budget_goes_on_where_a_larger_one_was_met() -> None:
    model = uniform_model(layers=6, neurons=48)
    one = search(model, structures=("ffn",))
    large = one.choose(keep_budget(model, 0.9))
    small = one.choose(keep_budget(model, 0.75))
    assert {k.source for k in large if k.ffn is None} < {k.source for k in small if k.ffn is None}
    assert one.choose(keep_budget(model, 0.9)) == large


def test_two_runs_give_the_same_on_any_threads() -> None:
    model = uniform_model(layers=4, neurons=48)
    budget = keep_budget(model, 0.8)
    found = {search(model, links=True, threads=n).choose(budget) for n in (1, 2, 2)}
    assert len(found) == 1


def test_interrupted_work_goes_on_to_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "RECORD_SECONDS", 0.0)
    model = uniform_model(layers=5, neurons=48)
    whole = search(model, links=True).choose(keep_budget(model, 0.6))

    def interrupt(what: str, done: int, total: int) -> None:
        if what.endswith("round 3"):
            raise KeyboardInterrupt

    stopped = search(model, links=True, journal=Journal(tmp_path, {}), progress=interrupt)
    with pytest.raises(KeyboardInterrupt):
        stopped.choose(keep_budget(model, 0.6))
    resumed = search(model, links=True, journal=Journal(tmp_path, {}))
    monkeypatch.setattr(resumed, "_screening", None)  # is not needed again
    assert resumed.choose(keep_budget(model, 0.6)) == whole


@settings(max_examples=12)
@given(seeds)
def test_any_model_can_be_cut(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = random_model(rng)
    left = cuts(model.config, BLOCKS, frozenset())
    if not left or not model.config.causal:
        return
    budget = keep_budget(model, 1 - 1e-9)
    kept = search(model, links=True, windows=3).choose(budget)
    recipe = Recipe(model.name, model.fingerprint, kept)
    slim = prune(model, recipe, calibration=TEXT, tokens=1024)
    assert slim.config.non_embedding_parameters() < model.config.non_embedding_parameters()
    tokens = rng.integers(0, model.config.vocab_size, 10).tolist()
    assert np.isfinite(forward(slim.config, slim.read_f32, tokens)).all()


def test_replacements_are_packed_bit_for_bit() -> None:
    values = {"layers.1.attention.link.down": np.ones((2, 3), np.float32)}
    one = Replacement(Cut(1, ("attention", "ffn")), LinkConfig("low_rank", 2), values, 0.1 + 0.2)
    two = Replacement(Cut(0, ("ffn",)), None, {}, 0.5)
    for given_one in (one, two):
        packed = {name: Tensor.of(array) for name, array in given_one.pack().items()}
        assert Replacement.unpack(packed) == given_one


def test_mistakes_are_told() -> None:
    model = uniform_model(layers=3, neurons=48)
    with pytest.raises(BudgetError, match="possible is"):
        plan(model, keep=0.001, structures=("attention",), calibration=TEXT)
    with pytest.raises(ConfigError, match="links"):
        plan(model, keep=0.8, links=True, calibration=TEXT)
    linked = KeptLayer(0, NewLink(LinkConfig("full")), None)
    recipe = Recipe(model.name, model.fingerprint, (linked,))
    with pytest.raises(ConfigError, match="repair mean"):
        prune(model, recipe, repair="mean", calibration=TEXT)
