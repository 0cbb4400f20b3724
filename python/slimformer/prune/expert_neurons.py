"""Which neurons of a routed FFN stay when the cheapest go."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from slimformer.config import RoutedFfnConfig


class ExpertNeurons:
    """The neurons of all experts of a layer in one ranking; the dearest of each expert stays.

    Parameters
    ----------
    ffn
        The layer's FFN.
    scores
        What each neuron costs, expert by expert, [neurons of all]; ``None`` where none may go.
    """

    def __init__(self, ffn: RoutedFfnConfig, scores: npt.NDArray[np.float64] | None) -> None:
        total = ffn.n_neurons
        self._starts = np.cumsum([0, *ffn.experts])
        self._goes = np.full(total, total)  # how many must go before this one does
        if scores is None:
            return
        self._goes[np.argsort(scores, kind="stable")] = np.arange(total)
        for first, end in zip(self._starts, self._starts[1:], strict=False):
            self._goes[first + int(self._goes[first:end].argmax())] = total

    def left(self, experts: Iterable[int], neurons: int) -> tuple[tuple[int, ...], ...]:
        """Neurons of each of these experts when ``neurons`` of the whole ranking are left."""
        stays = self._stays(neurons)
        return tuple(
            tuple(np.flatnonzero(stays[self._starts[e] : self._starts[e + 1]]).tolist())
            for e in experts
        )

    def count(self, experts: Iterable[int], neurons: int) -> int:
        """How many that are."""
        stays = self._stays(neurons)
        return sum(int(stays[self._starts[e] : self._starts[e + 1]].sum()) for e in experts)

    def _stays(self, neurons: int) -> npt.NDArray[np.bool_]:
        stays: npt.NDArray[np.bool_] = self._goes >= len(self._goes) - neurons
        return stays
