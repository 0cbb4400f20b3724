"""Least squares over the weights that are left, their places fixed.

Every output has a system of its own, for it keeps inputs of its own. Conjugate gradients solve
them all side by side with products of whole matrices, as in Meng et al. 2024, "ALPS: Improved
Optimization for Highly Sparse One-Shot Pruning", arXiv 2406.07831.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from slimformer.prune.sparsify import Kept

Floats = npt.NDArray[np.float32]


def refit_survivors(
    start: Floats, kept: Kept, wanted: Floats, system: Floats, steps: int
) -> Floats:
    """Weights at the kept places that do what the weights ``wanted`` would do.

    Minimises ``tr (W - wanted) system (W - wanted)'`` over the W that are zero elsewhere.

    Parameters
    ----------
    start
        Where to begin, zero where nothing is kept, [outputs, inputs].
    kept
        The places of the survivors.
    wanted
        The best weights without zeros.
    system
        Second moments of the inputs, damped, [inputs, inputs].
    steps
        Of conjugate gradients; each is one product of matrices.
    """
    weight = start.copy()
    scales = 1 / np.diagonal(system)  # the preconditioner
    residual = np.where(kept, (wanted - weight) @ system, np.float32(0))
    direction = residual * scales
    energy = np.einsum("oi,oi,i->o", residual, residual, scales)
    for _ in range(steps):
        image = np.where(kept, direction @ system, np.float32(0))
        curvature = np.einsum("oi,oi->o", direction, image)
        length = np.divide(energy, curvature, out=np.zeros_like(energy), where=curvature > 0)
        weight += length[:, None] * direction
        residual -= length[:, None] * image
        before, energy = energy, np.einsum("oi,oi,i->o", residual, residual, scales)
        share = np.divide(energy, before, out=np.zeros_like(energy), where=before > 0)
        direction *= share[:, None]
        direction += residual * scales
    return weight
