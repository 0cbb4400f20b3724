"""One matrix: the weights that are wanted of it, and those that it gets with its zeros."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from slimformer.prune.sparsify import Kept
from slimformer.prune.zeros.choice import Method
from slimformer.prune.zeros.pattern import Pattern
from slimformer.prune.zeros.sparsegpt import BLOCK_COLUMNS, inverse_factor, sparsegpt
from slimformer.prune.zeros.survivors import refit_survivors

Floats = npt.NDArray[np.float32]
Array = npt.NDArray[np.float64]

CHOICE_DAMPING = 0.01
"""Of the second moments by which places are chosen, relative to their mean diagonal: the value of
SparseGPT's authors."""

REFIT_DAMPING = 0.1
"""Of those that the survivors are refitted to: fresh text bears out less than the text shows."""

REFIT_STEPS = 6
"""Conjugate gradients begin near the end: on fresh text six steps do what fifteen do (divergence
0.0871 and 0.0876 with the first three layers of the demo's model half zero)."""


class Inputs:
    """Second moments of what some matrices read, and what solving for them needs."""

    def __init__(self, gram: Array) -> None:
        """``gram``: sum of x x', [inputs, inputs]."""
        self._gram = gram
        self._factor: Floats | None = None
        self._system: Floats | None = None

    @property
    def lengths(self) -> Floats:
        """Norm of each input over all tokens, [inputs]."""
        return np.sqrt(np.diagonal(self._gram)).astype(np.float32)

    @property
    def factor(self) -> Floats:
        """What ``sparsegpt`` asks for."""
        if self._factor is None:
            self._factor = inverse_factor(_damped(self._gram, CHOICE_DAMPING))
        return self._factor

    @property
    def system(self) -> Floats:
        """What ``refit_survivors`` asks for."""
        if self._system is None:
            self._system = _damped(self._gram, REFIT_DAMPING).astype(np.float32)
        return self._system


@dataclasses.dataclass(frozen=True)
class Solver:
    """How matrices get their zeros.

    ``refit``: whether the survivors make up for what went. SparseGPT's make up for some of it in
    any case.
    """

    method: Method
    pattern: Pattern
    refit: bool

    def solve(self, wanted: Floats, inputs: Inputs, share: float) -> Floats:
        """A matrix with its share of zeros that does what ``wanted`` does, [outputs, inputs]."""
        if share == 0 and self.pattern.share is None:
            return wanted
        weight, kept = self._choose(wanted, inputs, share)
        if self.refit:
            weight = refit_survivors(weight, kept, wanted, inputs.system, REFIT_STEPS)
        return weight

    def _choose(self, wanted: Floats, inputs: Inputs, share: float) -> tuple[Floats, Kept]:
        if self.method == "sparsegpt":
            width = self.pattern.width
            if self.pattern.share is None:  # a run of N:M is chosen when the walk comes to it
                width = max(1, BLOCK_COLUMNS // width) * width
            return sparsegpt(
                wanted, inputs.factor, lambda scores: self.pattern.select(scores, share), width
            )
        kept = self.places(wanted, inputs.lengths, share)
        return np.where(kept, wanted, np.float32(0)), kept

    def places(self, wanted: Floats, lengths: Floats, share: float) -> Kept:
        """What magnitude or Wanda keep.

        By magnitude the smallest weights of a matrix go (Han et al. 2015, "Learning both Weights
        and Connections for Efficient Neural Networks", arXiv 1506.02626); by Wanda those of each
        output for which magnitude times the norm of the input is smallest (Sun et al. 2023, "A
        Simple and Effective Pruning Approach for Large Language Models", arXiv 2306.11695).
        """
        scores = np.abs(wanted)
        if self.method == "magnitude" or self.pattern.share is not None:
            return self.pattern.select(scores * (lengths if self.method == "wanda" else 1), share)
        scores = scores * lengths
        rows = self.pattern.rows
        return np.concatenate(
            [
                self.pattern.select(scores[first : first + rows], share)
                for first in range(0, len(scores), rows)
            ]
        )


def _damped(gram: Array, damping: float) -> Array:
    """The moments with a ridge; the identity where no text has come by."""
    ridge = damping * float(np.trace(gram)) / len(gram)
    system = gram.copy()
    system.flat[:: len(system) + 1] += ridge if ridge > 0 else 1.0
    return system
