"""Evidence for refits, gathered from text as it flows by."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from slimformer.engine import Moments
from slimformer.errors import DataError
from slimformer.prune.refit import Evidence

Floats = npt.NDArray[np.float32]
Array = npt.NDArray[np.float64]
Products = Literal["f32", "bf16"]


class EvidenceSums:
    """Gathers the evidence for one or several wishes that one linear map has to meet.

    A token counts by the square of its scale. Where outputs are added to the stream that is the
    inverse length of the wanted one: the next layer normalises the stream, so what matters is the
    error relative to it. Unweighted, a few tokens with massive activations would decide everything.
    """

    def __init__(
        self, width: int, channels: int, wishes: int, products: Products, threads: int
    ) -> None:
        """Nothing is gathered yet.

        Parameters
        ----------
        width, channels
            Inputs and outputs of the map.
        products
            Precision of the factors of each product; sums are exact enough in any case.
        """
        self._moments = Moments(
            width, target_width=wishes * channels, products=products, threads=threads
        )
        self._energies = np.zeros(wishes)

    def add(self, inputs: Floats, wishes: tuple[Floats, ...], scale: Floats | float = 1.0) -> None:
        """Add some tokens: inputs and wishes [..., tokens, width], scale [..., tokens, 1]."""
        outputs = np.concatenate(wishes, axis=-1) * scale
        split = outputs.reshape(-1, len(wishes), wishes[0].shape[-1])
        self._energies += np.einsum("twc,twc->w", split, split, dtype=np.float64)
        scaled = inputs * scale
        self._moments.update(
            scaled.reshape(-1, scaled.shape[-1]), outputs.reshape(-1, outputs.shape[-1])
        )

    def evidence(self) -> list[Evidence]:
        """The evidence for each wish."""
        gram, cross = self._moments.gram, self._moments.cross
        crosses = [one.copy() for one in np.split(cross, len(self._energies), axis=1)]
        return [
            Evidence(gram, cross, float(energy), self._moments.count)
            for cross, energy in zip(crosses, self._energies, strict=True)
        ]


def gather(
    inputs: Floats,
    *wishes: Floats,
    scale: Floats | float = 1.0,
    products: Products,
    threads: int,
) -> list[Evidence]:
    """All the evidence for each wish at once; see ``EvidenceSums.add``."""
    sums = EvidenceSums(inputs.shape[-1], wishes[0].shape[-1], len(wishes), products, threads)
    sums.add(inputs, wishes, scale)
    return sums.evidence()


def check_evidence(name: str, *found: Evidence) -> None:
    """Raise DataError unless what was gathered for a map of this name is finite."""
    for one in found:
        check_finite(name, one.gram, one.cross, one.energy)


def check_finite(name: str, *values: float | Array) -> None:
    """Raise DataError unless sums of what flows past a place of this name are finite."""
    if not all(np.isfinite(value).all() for value in values):
        raise DataError(f"{name}: activations on the calibration text are not finite")
