"""What the down-projections of experts read: each of them the tokens that ran it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from slimformer.config import RoutedFfnConfig

Floats = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.intp]


class ExpertRows:
    """The neurons of each expert, weighted by its probability, for the tokens that it runs on.

    All neurons of all experts would be mostly zeros: a token runs few experts.
    """

    def __init__(self, ffn: RoutedFfnConfig) -> None:
        self._starts = np.cumsum([0, *ffn.experts])
        self._tokens: list[list[Tokens]] = [[] for _ in ffn.experts]
        self._rows: list[list[Floats]] = [[] for _ in ffn.experts]
        self.count = 0

    def add(self, neurons: Floats) -> None:
        """Add some tokens, in order; neurons of all experts, [..., neurons], 0 where none runs."""
        flat = neurons.reshape(-1, neurons.shape[-1])
        for expert, (tokens, rows) in enumerate(zip(self._tokens, self._rows, strict=True)):
            own = flat[:, self._starts[expert] : self._starts[expert + 1]]
            ran = np.flatnonzero(own.any(axis=1))
            tokens.append(ran + self.count)
            rows.append(own[ran])
        self.count += len(flat)

    def of(self, expert: int) -> tuple[Tokens, Floats]:
        """The tokens, ascending, that run an expert, and its neurons then, [tokens, neurons]."""
        width = int(self._starts[expert + 1] - self._starts[expert])
        none = (np.empty(0, np.intp), np.empty((0, width), np.float32))
        return (
            np.concatenate([none[0], *self._tokens[expert]]),
            np.concatenate([none[1], *self._rows[expert]]),
        )
