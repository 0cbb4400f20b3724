"""Channels of the residual stream: removed, rotated, chosen and made up for."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings

from prune.cases import random_model, random_units, seeds, silenced
from prune.test_allocate import uniform_model
from reference.forward import forward
from reference.models import random_checkpoint, random_config
from slimformer.checkpoint import Checkpoint
from slimformer.checkpoint.checkpoint import Tensor
from slimformer.config import LayerConfig, LinkConfig
from slimformer.errors import BudgetError, ConfigError, RecipeError, UnsupportedModelError
from slimformer.prune import Recipe, apply, explicit, plan_channels, prune, rotate, to_mask
from slimformer.prune.calibrate import make_windows
from slimformer.prune.channels.choice import measure_channels, principal_basis

TEXT = ["the river of light and the stone engine in the layer of it 0123456789 " * 200]
OPTIONS: dict[str, Any] = {"calibration": TEXT, "tokens": 4096, "threads": 1}


def keep(model: Checkpoint, channels: tuple[int, ...]) -> Recipe:
    return dataclasses.replace(Recipe.identity(model), channels=channels)


def logits(model: Checkpoint, tokens: list[int]) -> npt.NDArray[np.float64]:
    return forward(model.config, model.read_f32, tokens)


def random_basis(rng: np.random.Generator, size: int) -> npt.NDArray[np.float64]:
    return np.asarray(np.linalg.qr(rng.standard_normal((size, size)))[0])


@given(seeds)
def test_removed_channels_are_channels_with_nothing_in_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = random_model(rng)
    channels = random_units(rng, model.config.n_channels)
    if model.config.norm == "layer":
        with pytest.raises(RecipeError, match="layer norm"):
            apply(model, keep(model, channels))
        return
    tokens = rng.integers(0, model.config.vocab_size, 20).tolist()
    silent = logits(silenced(model, channels), tokens)
    narrow = apply(model, keep(model, channels))
    assert narrow.config.n_channels == len(channels)
    assert narrow.config.norm_divisor == model.config.norm_divisor
    # Both in float64; only the order of sums differs.
    scale = max(1e-30, float(np.abs(silent).max()))
    np.testing.assert_allclose(logits(narrow, tokens), silent, rtol=1e-9, atol=1e-9 * scale)


def test_no_mask_removes_channels() -> None:
    model = random_model(np.random.default_rng(0), ragged=False)
    with pytest.raises(RecipeError, match="channels: no mask"):
        to_mask(keep(model, (0,)), model.config)


@settings(max_examples=25)
@given(seeds)
def test_a_rotated_model_says_the_same(seed: int) -> None:
    rng = np.random.default_rng(seed)
    config = random_config(rng)
    while any(
        part is not None and part.norm_place != "before"
        for layer in config.layers
        for part in (layer.attention, layer.ffn)
    ) or (config.norm == "layer" or config.embedding_norm):
        config = random_config(rng)
    model = random_checkpoint(config, seed)
    tokens = rng.integers(0, config.vocab_size, 20).tolist()
    turned = rotate(model, random_basis(rng, config.n_channels))
    assert turned.config.tied_head == (config.tied_head and not config.final_norm)
    before, after = logits(model, tokens), logits(turned, tokens)
    # Weights are turned in float32.
    np.testing.assert_allclose(after, before, rtol=0, atol=2e-4 * np.abs(before).max())


def test_a_rotated_diagonal_link_is_a_full_one_and_a_constant_stays_one() -> None:
    rng = np.random.default_rng(4)
    config = random_config(rng, ragged=False)
    layers = tuple(
        dataclasses.replace(
            layer, attention=LinkConfig("constant"), ffn=LinkConfig("diagonal"), parallel=False
        )
        for layer in config.layers
    )
    model = random_checkpoint(dataclasses.replace(config, layers=layers), 1)
    turned = rotate(model, random_basis(rng, config.n_channels))
    assert {layer.attention for layer in turned.config.layers} == {LinkConfig("constant")}
    assert {layer.ffn for layer in turned.config.layers} == {LinkConfig("full")}
    assert turned.recipe is None
    assert turned.fingerprint != model.fingerprint
    before, after = logits(model, [1, 2, 3]), logits(turned, [1, 2, 3])
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-4 * np.abs(before).max())


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"norm": "layer"}, "layer norm"),
        ({"causal": False, "tied_head": True}, "encoder"),
        ({"embedding_norm": True}, "embedding"),
    ],
)
def test_what_cannot_be_rotated_is_refused_by_name(changes: dict[str, Any], name: str) -> None:
    config = dataclasses.replace(random_config(np.random.default_rng(0), ragged=False), **changes)
    model = random_checkpoint(config, 0)
    with pytest.raises(UnsupportedModelError, match=name):
        rotate(model, np.eye(config.n_channels))


def test_norms_behind_sub_blocks_are_refused_by_name() -> None:
    config = random_config(np.random.default_rng(0), ragged=False)
    layers = tuple(
        dataclasses.replace(layer, ffn=dataclasses.replace(layer.ffn, norm_place="both"))  # type: ignore[type-var]
        for layer in config.layers
    )
    model = random_checkpoint(dataclasses.replace(config, layers=layers), 0)
    with pytest.raises(UnsupportedModelError, match="behind its sub-blocks"):
        plan_channels(model, 2, rotated=True)


def test_a_basis_is_orthogonal_and_of_the_right_size() -> None:
    model = random_model(np.random.default_rng(0), ragged=False)
    size = model.config.n_channels
    with pytest.raises(ConfigError, match="orthogonal"):
        rotate(model, 2 * np.eye(size))
    with pytest.raises(ConfigError, match="expected \\["):
        rotate(model, np.eye(size + 1))


@pytest.mark.parametrize("count", [0, 33])
def test_a_count_that_cannot_be(count: int) -> None:
    model = uniform_model(layers=2, neurons=16)
    with pytest.raises(BudgetError, match="channels"):
        plan_channels(model, model.config.n_channels + 1 if count else 0, **OPTIONS)


def quiet(model: Checkpoint, channels: tuple[int, ...]) -> Checkpoint:
    """A model that writes a hundredth to these channels."""
    values = {}
    for name in model.tensors:
        if name == "embedding.weight" or name.endswith(("o.weight", "down.weight")):
            array = np.array(model.read(name))
            axis = 1 if name == "embedding.weight" else 0
            np.moveaxis(array, axis, 0)[list(channels)] *= 0.01
            values[name] = array
    return model.with_tensors(values)


def test_channels_that_nothing_is_read_from_go_first() -> None:
    model = quiet(uniform_model(layers=2, neurons=16), (3, 7))
    size = model.config.n_channels
    same, recipe = plan_channels(model, size - 2, **OPTIONS)
    assert same is model
    assert recipe.channels == tuple(c for c in range(size) if c not in (3, 7))


def test_the_principal_basis_leaves_least_behind() -> None:
    model = uniform_model(layers=2, neurons=16)
    windows = make_windows(model, TEXT, tokens=2048, seed=0)
    before = measure_channels(model, windows, threads=1)
    turned = rotate(model, principal_basis(before))
    energies = measure_channels(turned, windows, threads=1).second_moment.diagonal()
    assert (np.diff(energies) <= 1e-3 * energies.sum()).all()
    for count in (4, 12):
        selected = np.sort(before.second_moment.diagonal())[::-1][:count].sum()
        assert energies[:count].sum() >= selected - 1e-3
    assert energies.sum() == pytest.approx(before.second_moment.trace(), rel=1e-3)


def drift(dense: Checkpoint, other: Checkpoint) -> float:
    tokens = make_windows(dense, TEXT, tokens=256, seed=5, window=64)[0].tolist()
    before, after = logits(dense, tokens), logits(other, tokens)
    return float(np.linalg.norm(after - before) / np.linalg.norm(before))


@pytest.mark.parametrize("rotated", [False, True])
def test_a_constant_is_cut_with_the_stream_and_reads_none_of_it(rotated: bool) -> None:
    config = uniform_model(layers=2, neurons=16).config
    layers = (*config.layers, LayerConfig(LinkConfig("constant"), None))
    dense = random_checkpoint(dataclasses.replace(config, layers=layers), 1, tokenizer=True)
    source, recipe = plan_channels(dense, config.n_channels - 8, rotated=rotated, **OPTIONS)
    narrow = prune(source, recipe, **OPTIONS)
    name = "layers.2.attention.link.bias"
    np.testing.assert_array_equal(narrow.read(name), source.read(name)[list(recipe.channels or ())])
    assert np.isfinite(logits(narrow, [1, 2, 3])).all()


@pytest.mark.parametrize("rotated", [False, True])
def test_the_refit_makes_up_for_channels_that_went(rotated: bool) -> None:
    dense = uniform_model(layers=3, neurons=48)
    source, recipe = plan_channels(
        dense, dense.config.n_channels * 3 // 4, rotated=rotated, **OPTIONS
    )
    cut = drift(dense, prune(source, recipe, repair="none"))
    repaired = prune(source, recipe, **OPTIONS)
    assert repaired.recipe == recipe.to_dict()
    assert drift(dense, repaired) < 0.9 * cut


def test_channels_and_units_go_in_one_call_as_in_two() -> None:
    dense = uniform_model(layers=3, neurons=48)
    _, recipe = plan_channels(dense, dense.config.n_channels - 8, **OPTIONS)
    narrow = prune(dense, recipe, **OPTIONS)
    units = explicit(narrow, neurons=32)
    steps = prune(narrow, units, **OPTIONS)
    at_once = prune(dense, recipe.then(units), **OPTIONS)
    assert at_once.fingerprint == steps.fingerprint
    assert at_once.recipe == steps.recipe


def test_types_stay_what_they_were() -> None:
    dense = uniform_model(layers=2, neurons=16)
    halves = dataclasses.replace(
        dense,
        tensors={
            name: Tensor(t.shape, "f16", lambda t=t: t.read().astype(np.float16))  # type: ignore[misc]
            for name, t in dense.tensors.items()
        },
    )
    source, recipe = plan_channels(halves, 16, rotated=True, **OPTIONS)
    slim = prune(source, recipe, **OPTIONS)
    assert {tensor.dtype for tensor in slim.tensors.values()} == {"f16"}
