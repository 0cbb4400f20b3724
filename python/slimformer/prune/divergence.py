"""How far a model's predictions are from the dense model's."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]


class Predictions:
    """The dense model's predictions at some places in a text."""

    def __init__(self, logits: Logits) -> None:
        """``logits``: the dense model's, [places, vocab]."""
        shifted = logits - logits.max(axis=-1, keepdims=True)
        self._shares = np.exp(shifted)
        sums = self._shares.sum(axis=-1, keepdims=True)
        self._shares /= sums  # [places, vocab]
        self._negentropy = np.einsum("pv,pv->p", self._shares, shifted - np.log(sums))

    def divergence(self, logits: Logits) -> float:
        """Mean Kullback-Leibler divergence, in nats, of other predictions from these.

        Parameters
        ----------
        logits
            At the same places, [places, vocab].
        """
        highest = logits.max(axis=-1)
        log_sums = np.log(np.exp(logits - highest[:, None]).sum(axis=-1)) + highest
        expected = np.einsum("pv,pv->p", self._shares, logits)
        return float(np.mean(self._negentropy - expected + log_sums, dtype=np.float64))
