"""An FFN that learns to give wanted outputs: gradient descent on its own matrices alone.

A refit of the down-projection uses what the neurons that are left say; it cannot make them say
anything else. Here all matrices of one FFN are fitted together to what the whole FFN gave, which
is the reconstruction of one block of Li et al. 2021, BRECQ, arXiv 2102.05426. No gradient passes
from layer to layer, so it takes no more than three matrices and the text at hand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from slimformer.ffn import Activation

Floats = npt.NDArray[np.float32]

Batch = tuple[Floats, Floats, Floats]
"""Inputs and wanted outputs of some tokens, each [tokens, channels], and how much an error of each
token counts, [tokens, 1]; see ``EvidenceSums``."""

BATCH = 512
"""Tokens in a step."""

RATE = 0.05
"""Learning rate over the root mean square of a matrix's weights and over the root of the relative
error: a step is noise of that size in every weight, and where little is wrong, little is enough to
make it worse. With 32 thousand tokens, layers of smollm2-135m whose error is 0.3, 0.06 and 0.01
did best with just about this."""

WARM_UP = 20
"""Steps in which the rate rises; it falls to 0 in all others."""

_DECAYS = (0.9, 0.95)
_EPSILON = 1e-20  # gradients may have any size; where there is none, this is not 0 / 0


@dataclasses.dataclass(frozen=True)
class FfnWeights:
    """The matrices of an FFN, gate and up [neurons, channels], down [channels, neurons].

    Biases of gate and up are [neurons]; what is not there is ``None`` or 0.
    """

    up: Floats
    down: Floats
    gate: Floats | None = None
    up_bias: Floats | float = 0.0
    gate_bias: Floats | float = 0.0

    @property
    def matrices(self) -> dict[str, Floats]:
        """What learns, by name."""
        found = {"gate": self.gate, "up": self.up, "down": self.down}
        return {name: matrix for name, matrix in found.items() if matrix is not None}

    def mean(self, other: FfnWeights) -> FfnWeights:
        """The mean of both; they have learned from the same beginning."""
        theirs = other.matrices
        means: dict[str, Any] = {
            name: (own + theirs[name]) / 2 for name, own in self.matrices.items()
        }
        return dataclasses.replace(self, **means)


def output(weights: FfnWeights, activation: Activation, inputs: Floats) -> Floats:
    """What the FFN makes of inputs [tokens, channels], the bias of down left out; likewise."""
    product: Floats = _Neurons(weights, activation, inputs).values @ weights.down.T
    return product


def learn(
    start: FfnWeights, activation: Activation, batches: Iterable[Batch], steps: int, error: float
) -> FfnWeights:
    """Fit the matrices to batches of text by Adam.

    Parameters
    ----------
    batches
        As many as there are ``steps``, at least one.
    error
        What ``start`` leaves of the wanted outputs' energy, from 0 to 1.
    """
    weights = dataclasses.replace(
        start, **{name: matrix.copy() for name, matrix in start.matrices.items()}
    )
    rules = {
        name: _Adam(matrix, RATE * float(np.sqrt(error * np.mean(matrix**2, dtype=np.float64))))
        for name, matrix in weights.matrices.items()
    }
    for step, batch in enumerate(batches):
        share = min(1.0, (step + 1) / WARM_UP) * (1 - step / steps)
        for name, gradient in gradients(weights, activation, batch).items():
            rules[name].step(gradient, share)
    return weights


class _Neurons:
    """What the neurons say, [tokens, neurons], and how that depends on gate and up."""

    values: Floats
    by_up: Floats
    by_gate: Floats

    def __init__(self, weights: FfnWeights, activation: Activation, inputs: Floats) -> None:
        up: Floats = inputs @ weights.up.T + weights.up_bias
        if weights.gate is None:
            self.values, self.by_up = _ACTIVATIONS[activation](up)
            return
        gate: Floats = inputs @ weights.gate.T + weights.gate_bias
        self.by_up, slope = _ACTIVATIONS[activation](gate)
        self.values = up * self.by_up
        self.by_gate = np.multiply(slope, up, out=slope)


def gradients(weights: FfnWeights, activation: Activation, batch: Batch) -> dict[str, Floats]:
    """Gradients of the mean over tokens of ``|scale * (output - wanted)|^2 / 2``."""
    inputs, wanted, scale = batch
    neurons = _Neurons(weights, activation, inputs)
    wrong: Floats = neurons.values @ weights.down.T
    wrong -= wanted
    wrong *= scale**2 / len(inputs)
    back: Any = wrong @ weights.down
    found: dict[str, Floats] = {
        "down": wrong.T @ neurons.values,
        "up": (back * neurons.by_up).T @ inputs,
    }
    if weights.gate is not None:
        found["gate"] = (back * neurons.by_gate).T @ inputs
    return found


class _Adam:
    """Kingma & Ba 2014, arXiv 1412.6980, for one matrix, in place."""

    def __init__(self, matrix: Floats, rate: float) -> None:
        self._matrix = matrix
        self._rate = rate
        self._mean = np.zeros_like(matrix)
        self._square = np.zeros_like(matrix)
        self._steps = 0

    def step(self, gradient: Floats, share: float) -> None:
        """Take one step with that share of the rate; ``gradient`` is overwritten."""
        self._steps += 1
        first, second = _DECAYS
        self._mean *= first
        self._mean += gradient * np.float32(1 - first)
        np.square(gradient, out=gradient)
        gradient *= np.float32(1 - second)
        self._square *= second
        self._square += gradient
        np.sqrt(self._square, out=gradient)
        spread = np.sqrt(1 - second**self._steps)
        gradient += np.float32(_EPSILON * spread)
        np.divide(self._mean, gradient, out=gradient)
        gradient *= np.float32(share * self._rate * spread / (1 - first**self._steps))
        self._matrix -= gradient


def _silu(x: Floats) -> tuple[Floats, Floats]:
    with np.errstate(over="ignore"):  # far below zero: 1 / inf is what it should be
        sigmoid: Any = 1 / (1 + np.exp(-x))
    values: Floats = x * sigmoid
    slopes: Floats = sigmoid + values * (1 - sigmoid)
    return values, slopes


def _gelu(x: Floats) -> tuple[Floats, Floats]:
    scale, cubic = np.float32(np.sqrt(2 / np.pi)), np.float32(0.044715)
    squares = x * x
    tanh = np.tanh(scale * x * (1 + cubic * squares))
    half: Any = (1 + tanh) / 2
    values: Floats = x * half
    slopes: Floats = half + values * (1 - tanh) * scale * (1 + 3 * cubic * squares)
    return values, slopes


def _relu(x: Floats) -> tuple[Floats, Floats]:
    return np.maximum(x, 0), (x > 0).astype(np.float32)


_ACTIVATIONS: dict[Activation, Callable[[Floats], tuple[Floats, Floats]]] = {
    "silu": _silu,
    "gelu_tanh": _gelu,
    "gelu": _gelu,  # which differs by 0.0005 at most, and slopes are all it is for
    "relu": _relu,
}
"""Values and slopes."""
