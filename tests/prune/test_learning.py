from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from prune.test_allocate import uniform_model
from prune.test_pipeline import drift, random_text
from reference.models import random_checkpoint
from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.ffn import Activation, FfnConfig
from slimformer.prune import explicit, prune
from slimformer.prune.effort import Effort
from slimformer.prune.learning import Batch, FfnWeights, Floats, gradients, learn, output

ACTIVATIONS: tuple[Activation, ...] = ("silu", "gelu_tanh", "gelu", "relu")


def random_ffn(rng: np.random.Generator, neurons: int, *, gated: bool = True) -> FfnWeights:
    def matrix(*shape: int) -> Floats:
        values = rng.standard_normal(shape) / np.sqrt(shape[-1])
        rounded: Floats = values.astype(np.float32)
        return rounded

    bias = matrix(neurons)
    gate = matrix(neurons, 12) if gated else None
    return FfnWeights(matrix(neurons, 12), matrix(12, neurons), gate, bias, 2 * bias)


def error(weights: FfnWeights, activation: Activation, batch: Batch) -> float:
    inputs, wanted, scale = (one.astype(np.float64) for one in batch)
    found: Any = output(weights, activation, inputs)  # type: ignore[arg-type]
    wrong = scale * (found - wanted)
    return float(np.sum(wrong**2)) / len(inputs)


def some_text(rng: np.random.Generator, true: FfnWeights, tokens: int) -> Batch:
    inputs = rng.standard_normal((tokens, 12), dtype=np.float32)
    scale = rng.uniform(0.5, 2.0, (tokens, 1)).astype(np.float32)
    return inputs, output(true, "silu", inputs), scale


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gated", [False, True])
def test_gradients_are_those_of_the_error(activation: Activation, gated: bool) -> None:
    rng = np.random.default_rng(0)
    weights = random_ffn(rng, 20, gated=gated)
    batch = some_text(rng, random_ffn(rng, 30), 40)
    found = gradients(weights, activation, batch)
    assert found.keys() == weights.matrices.keys()
    for name, matrix in weights.matrices.items():
        along = rng.standard_normal(matrix.shape) / np.sqrt(matrix.size)

        def moved(by: float, name: str = name, along: Any = along) -> float:
            there: Any = {name: weights.matrices[name] + by * along}
            return error(dataclasses.replace(weights, **there), activation, batch) / 2

        slope = (moved(1e-4) - moved(-1e-4)) / 2e-4
        assert float(np.vdot(found[name], along)) == pytest.approx(slope, rel=2e-3, abs=1e-5)


def test_half_of_the_neurons_learn_what_a_refit_cannot_give() -> None:
    rng = np.random.default_rng(1)
    true = random_ffn(rng, 40)
    assert true.gate is not None
    half = dataclasses.replace(
        true,
        up=true.up[:20],
        gate=true.gate[:20],
        down=true.down[:, :20],
        up_bias=np.asarray(true.up_bias)[:20],
        gate_bias=np.asarray(true.gate_bias)[:20],
    )
    before = {name: matrix.copy() for name, matrix in half.matrices.items()}
    held_out = some_text(rng, true, 2000)
    energy = error(dataclasses.replace(half, down=0 * half.down), "silu", held_out)
    steps = 200

    def batches() -> Iterator[Batch]:
        for _ in range(steps):
            yield some_text(rng, true, 128)

    start = error(half, "silu", held_out) / energy
    refitted = best_down(half, some_text(rng, true, 4000))
    learned = learn(half, "silu", batches(), steps, start)
    assert error(learned, "silu", held_out) < 0.8 * error(refitted, "silu", held_out)
    for name, matrix in half.matrices.items():
        np.testing.assert_array_equal(matrix, before[name])


def best_down(weights: FfnWeights, batch: Batch) -> FfnWeights:
    """The down-projection with the least error on much text."""
    inputs, wanted, scale = batch
    width = weights.down.shape[1]
    only = dataclasses.replace(weights, down=np.eye(width, dtype=np.float32))
    neurons = output(only, "silu", inputs)
    down, *_ = np.linalg.lstsq(neurons * scale, wanted * scale, rcond=None)
    return dataclasses.replace(weights, down=np.ascontiguousarray(down.T))


def test_a_step_does_not_depend_on_the_size_of_errors() -> None:
    """Streams of some models are thousands long, and errors are seen relative to them."""
    rng = np.random.default_rng(2)
    weights, batch = random_ffn(rng, 20), some_text(rng, random_ffn(rng, 30), 600)
    inputs, wanted, scale = batch
    small = learn(weights, "silu", [(inputs, wanted, scale * np.float32(1e-6))] * 5, 5, 0.5)
    usual = learn(weights, "silu", [batch] * 5, 5, 0.5)
    for name, matrix in usual.matrices.items():
        np.testing.assert_allclose(small.matrices[name], matrix, rtol=1e-2, atol=1e-4)


HALVES = {index: range(48) for index in range(2)}

FFNS = {
    "gated": FfnConfig(96),
    "plain": FfnConfig(96, bias=True, activation="gelu", gated=False),
    "biased": FfnConfig(96, bias=True, activation="gelu_tanh"),
    "open": FfnConfig(96, activation="relu", gated=False),
}


def model(ffn: FfnConfig) -> Checkpoint:
    """One whose neurons are open or shut more often than those of small random weights are."""
    config = uniform_model().config
    layer = dataclasses.replace(config.layers[0], ffn=ffn)
    found = random_checkpoint(
        dataclasses.replace(config, layers=(layer,) * len(HALVES)), 7, tokenizer=True
    )
    names = [f"layers.{index}.ffn.{ffn.neuron_parts[0]}.weight" for index in HALVES]
    return found.with_tensors({name: 4 * found.read(name) for name in names})


@pytest.mark.parametrize("ffn", FFNS.values(), ids=FFNS)
def test_what_is_left_of_a_model_learns(ffn: FfnConfig) -> None:
    dense = model(ffn)
    recipe = explicit(dense, neurons=HALVES)
    texts = [text * 4 for text in random_text(1)]

    def pruned(effort: Effort) -> Checkpoint:
        return prune(dense, recipe, effort=effort, calibration=texts, tokens=10240)

    refitted, learned, again = pruned("fast"), pruned("thorough"), pruned("thorough")
    changed = []
    for name in (f"layers.{index}.ffn.up.weight" for index in HALVES):
        np.testing.assert_array_equal(refitted.read(name), dense.read(name)[:48])
        np.testing.assert_array_equal(learned.read(name), again.read(name))
        changed.append(not np.array_equal(learned.read(name), refitted.read(name)))
    assert any(changed)
    assert drift(dense, learned) < drift(dense, refitted)


def test_with_a_norm_behind_it_nothing_is_learned() -> None:
    dense = model(FfnConfig(96, norm_place="both"))
    recipe = explicit(dense, neurons=HALVES)
    texts = [text * 4 for text in random_text(1)]
    learned = prune(dense, recipe, effort="thorough", calibration=texts, tokens=10240)
    for name in (f"layers.{index}.ffn.up.weight" for index in HALVES):
        np.testing.assert_array_equal(learned.read(name), dense.read(name)[:48])


def test_little_text_teaches_nothing() -> None:
    dense = model(FFNS["gated"])
    recipe = explicit(dense, neurons=HALVES)

    def pruned(effort: Effort) -> Checkpoint:
        return prune(dense, recipe, effort=effort, calibration=random_text(1), tokens=4096)

    refitted, learned = pruned("fast"), pruned("thorough")
    for name in dense.tensors:
        np.testing.assert_array_equal(learned.read(name), refitted.read(name))
