from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings

from prune.cases import random_model, seeds
from prune.test_allocate import uniform_model
from reference.forward import forward
from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.config import AttentionConfig, FfnConfig, RoutedFfnConfig
from slimformer.engine import Engine, Mask
from slimformer.errors import DataError
from slimformer.prune import apply, plan, profile
from slimformer.prune.budget import keep_budget
from slimformer.prune.importance import CRITERIA, RATES, Criterion, score_model
from slimformer.prune.importance.obs import PRIOR
from slimformer.prune.importance.scores import LayerScores, Scores
from slimformer.prune.importance.statistics import layer_statistics
from slimformer.prune.outputs import Output
from slimformer.prune.stream import embed

TEXT = ["the river of light and the stone engine " * 40]


def windows_of(model: Checkpoint, count: int = 3, tokens: int = 40) -> npt.NDArray[np.int32]:
    rng = np.random.default_rng(0)
    return rng.integers(0, model.config.vocab_size, (count, tokens)).astype(np.int32)


def rate(
    model: Checkpoint, criterion: Criterion, threads: int = 1, windows: slice = slice(None)
) -> Scores:
    return score_model(
        model,
        windows_of(model)[windows],
        keep_budget(model, 0.6),
        criterion=criterion,
        structures=RATES[criterion],
        protect=frozenset(),
        threads=threads,
    )


@settings(max_examples=10)
@given(seeds)
def test_scores_have_the_shape_of_the_model(seed: int) -> None:
    model = random_model(np.random.default_rng(seed))
    for criterion in CRITERIA:
        scores = rate(model, criterion)
        assert len(scores) == len(model.config.layers)
        for rated, layer in zip(scores, model.config.layers, strict=True):
            if "neurons" in RATES[criterion]:
                routed = isinstance(layer.ffn, RoutedFfnConfig)
                dense = isinstance(layer.ffn, FfnConfig)
                assert (rated.neurons is not None) == (dense or routed)
                assert (rated.experts is not None) == routed
                assert (rated.heads is not None) == isinstance(layer.attention, AttentionConfig)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_scores_do_not_depend_on_threads(criterion: Criterion) -> None:
    model = uniform_model(layers=3, neurons=40)
    for one, two in zip(rate(model, criterion, 1), rate(model, criterion, 2), strict=True):
        for field in dataclasses.fields(LayerScores):
            np.testing.assert_array_equal(getattr(one, field.name), getattr(two, field.name))


@settings(max_examples=15)
@given(seeds)
def test_statistics_are_those_of_the_reference(seed: int) -> None:
    model = random_model(np.random.default_rng(seed))
    windows = windows_of(model)
    captured: list[dict[tuple[int, str], Any]] = []
    for window in windows:
        captured.append({})
        forward(model.config, model.read_f32, window.tolist(), captured=captured[-1])
    flow = layer_statistics(model, embed(model, windows), inputs="grams", threads=1)
    for index, found in enumerate(flow):
        before = np.concatenate([one[index, "attention_input"] for one in captured])
        after = np.concatenate([one[index, "layer_output"] for one in captured])
        lengths = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
        influence = np.mean(1 - np.sum(before * after, axis=1) / lengths)
        # float32 streams: a cosine near 1 is known to some 1e-6.
        assert found.layer.influence == pytest.approx(influence, abs=1e-5)
        squares = np.sum(after**2, axis=1)
        relative = np.mean(np.sum((after - before) ** 2, axis=1) / squares)
        assert found.layer.relative == pytest.approx(relative, rel=1e-3, abs=1e-6)
        if found.neurons is not None:
            x = np.concatenate([one[index, "ffn_neurons"] for one in captured])
            between = np.concatenate([one[index, "ffn_input"] for one in captured])
            x /= np.sqrt(squares)[:, None] * norm_divisors(model, index, between, x)
            scale = np.abs(x.T @ x / len(x)).max()
            mean_square = np.mean(x**2, axis=0)
            np.testing.assert_allclose(
                found.neurons.mean_square, mean_square, rtol=0, atol=2e-3 * scale
            )
        if found.neurons is not None and found.neurons.gram is not None:
            np.testing.assert_allclose(
                found.neurons.gram, x.T @ x / len(x), rtol=0, atol=2e-3 * scale
            )


def norm_divisors(model: Checkpoint, index: int, stream: Any, neurons: Any) -> Any:
    """What a norm behind the down-projection divides its output or the stream by, [tokens, 1]."""
    config, ffn = model.config, model.config.layers[index].ffn
    assert isinstance(ffn, (FfnConfig, RoutedFfnConfig))
    if ffn.norm_place == "before":
        return 1.0
    name = f"layers.{index}.ffn.down"
    output = neurons @ Output(model, index, "ffn").weight.T.astype(np.float64)
    if isinstance(ffn, FfnConfig) and ffn.bias:
        output += model.read_f32(f"{name}.bias")
    if ffn.norm_place == "stream":
        output += stream
    if config.norm == "layer":
        output -= output.mean(axis=1, keepdims=True)
    energy = np.sum(output**2, axis=1, keepdims=True) / config.norm_divisor
    return np.sqrt(energy + config.norm_eps)


def test_obs_sees_that_twins_can_stand_in_for_each_other() -> None:
    single = uniform_model(layers=1, neurons=24)
    copied = {}
    for part in ("gate", "up"):
        values = single.read(f"layers.0.ffn.{part}.weight").copy()
        values[5] = values[17]
        copied[f"layers.0.ffn.{part}.weight"] = values
    alone, paired = dearness(single), dearness(single.with_tensors(copied))
    # The first of the two to go is made up for by the other, as far as the ridge believes it;
    # the other then carries both.
    first, other = sorted((5, 17), key=lambda neuron: float(paired[neuron]))
    assert paired[first] < 0.75 * alone[first]
    assert paired[other] > 1.5 * alone[other]


def test_obs_does_not_depend_on_how_loud_a_neuron_is() -> None:
    model = uniform_model(layers=1, neurons=24)
    up = model.read("layers.0.ffn.up.weight").copy()
    down = model.read("layers.0.ffn.down.weight").copy()
    up[[3, 11]] *= 64
    down[:, [3, 11]] /= 64
    louder = model.with_tensors({"layers.0.ffn.up.weight": up, "layers.0.ffn.down.weight": down})
    expected, found = (rate(one, "obs")[0].neurons for one in (model, louder))
    assert expected is not None
    assert found is not None
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def dearness(model: Checkpoint) -> npt.NDArray[np.float64]:
    """What removing each neuron costs, for what it adds to the stream."""
    by_error, by_energy = (rate(model, criterion)[0].neurons for criterion in ("obs", "activation"))
    assert by_error is not None
    assert by_energy is not None
    return np.asarray(by_error / by_energy)


def test_what_adds_nothing_costs_least() -> None:
    model = uniform_model(layers=2, neurons=24)
    down = model.read("layers.1.ffn.down.weight").copy()
    down[:, 7] = 0
    model = model.with_tensors({"layers.1.ffn.down.weight": down})
    for criterion in ("activation", "obs"):
        neurons = rate(model, criterion)[1].neurons
        assert neurons is not None
        assert int(np.argmin(neurons)) == 7


def test_obs_takes_no_neuron_to_be_idle_on_other_text() -> None:
    model = uniform_model(layers=1, neurons=24)
    down = model.read("layers.0.ffn.down.weight").copy()
    down[:, 7] = 0
    model = model.with_tensors({"layers.0.ffn.down.weight": down})
    by_error, by_energy = (rate(model, criterion)[0].neurons for criterion in ("obs", "activation"))
    assert by_error is not None
    assert by_energy is not None
    assert by_energy[7] == 0
    assert by_error[7] == pytest.approx(PRIOR * float(np.mean(by_energy)), rel=1e-3)


def test_greedy_removes_the_block_that_matters_least() -> None:
    model = uniform_model(layers=4, neurons=40)
    idle = {
        name: np.zeros_like(model.read(name))
        for name in ("layers.2.attention.o.weight", "layers.2.ffn.down.weight")
    }
    model = model.with_tensors(idle)
    by_influence = plan(
        model, keep=0.8, structures=("layers",), criterion="block_influence", calibration=TEXT
    )
    assert [kept.source for kept in by_influence.layers] == [0, 1, 3]
    windows = windows_of(model)
    engine = Engine(model, weights="f32")

    def loss(*skipped: int) -> float:
        scores = engine.score(list(windows), mask=Mask.skip_layers(skipped))
        return -float(np.mean(np.concatenate(scores)))

    def added(keep: float) -> list[float | None]:
        scores = score_model(
            model,
            windows,
            keep_budget(model, keep),
            criterion="greedy_loss",
            structures=("layers",),
            protect=frozenset(),
        )
        return [rated.layers for rated in scores]

    first = [loss(layer) - loss() for layer in range(4)]
    assert int(np.argmin(first)) == 2
    layers = [rated.layers for rated in rate(model, "greedy_loss")]
    assert int(np.argmin(first)) == min(range(4), key=lambda layer: layers[layer] or 0.0)
    np.testing.assert_allclose(np.array(added(0.9), float), first, atol=1e-5)
    second = [loss(2, layer) - loss(2) for layer in (0, 1, 3)]
    found = added(0.6)
    np.testing.assert_allclose(np.array([*found[:2], found[3]], float), second, atol=1e-5)


def test_greedy_over_sub_blocks_meets_its_budget() -> None:
    model = uniform_model(layers=4, neurons=40)
    recipe = plan(
        model,
        keep=0.7,
        structures=("layers", "attention", "ffn"),
        criterion="greedy_loss",
        calibration=TEXT,
        protect=(),
    )
    share = apply(model, recipe).config.non_embedding_parameters()
    assert share <= 0.7 * model.config.non_embedding_parameters()


def test_the_profile_says_how_much_each_layer_does() -> None:
    model = uniform_model(layers=3, neurons=40)
    name = "layers.1.ffn.down.weight"
    model = model.with_tensors({name: np.zeros_like(model.read(name))})
    found = profile(model, calibration=TEXT)
    assert len(found.layers) == len(found.attention) == len(found.ffn) == 3
    assert found.ffn[1] == pytest.approx(0, abs=1e-6)
    assert min(found.attention) > 0


def test_activations_that_overflow_are_told() -> None:
    model = uniform_model(layers=2, neurons=24)
    name = "layers.1.ffn.up.weight"
    model = model.with_tensors({name: model.read(name) * np.float32(1e30)})
    with pytest.raises(DataError, match="layer 1"):
        rate(model, "activation")
