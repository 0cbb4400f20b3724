"""How far a model's predictions are from the dense model's."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]


BLOCK = 1 << 22
"""Logits that are worked on at a time: vocabularies of 262,144 tokens take gigabytes otherwise."""


class Predictions:
    """The dense model's predictions at some places in a text."""

    def __init__(self, logits: Logits) -> None:
        """``logits``: the dense model's, [places, vocab]."""
        self._shares = np.empty_like(logits)  # [places, vocab]
        self._negentropy = np.empty(len(logits), np.float32)  # [places]
        for rows in _blocks(logits):
            shifted = logits[rows] - logits[rows].max(axis=-1, keepdims=True)
            shares = np.exp(shifted)
            sums = shares.sum(axis=-1, keepdims=True)
            self._shares[rows] = shares / sums
            self._negentropy[rows] = np.einsum(
                "pv,pv->p", self._shares[rows], shifted - np.log(sums)
            )

    def divergence(self, logits: Logits) -> float:
        """Mean Kullback-Leibler divergence, in nats, of other predictions from these.

        Parameters
        ----------
        logits
            At the same places, [places, vocab].
        """
        found = np.empty(len(logits), np.float32)
        for rows in _blocks(logits):
            highest = logits[rows].max(axis=-1)
            shares = np.exp(logits[rows] - highest[:, None])
            log_sums = np.log(shares.sum(axis=-1)) + highest
            expected = np.einsum("pv,pv->p", self._shares[rows], logits[rows])
            found[rows] = self._negentropy[rows] - expected + log_sums
        return float(np.mean(found, dtype=np.float64))


def _blocks(logits: Logits) -> Iterator[slice]:
    """Some places at a time."""
    places, vocab = logits.shape
    step = max(1, BLOCK // vocab)
    return (slice(first, first + step) for first in range(0, places, step))
