"""Linear maps that stand in for what goes from a model, in closed form.

A map from some inputs to the output that is missed is fitted by least squares, and then takes the
shape that it is wanted in: a matrix, a matrix of low rank or a diagonal. A constant is a map of an
input that is one for every token. Maps at the cut of a layer are those of Chen et al. 2025,
LinearPatch, arXiv 2505.24680, and, folded into the projection before it, of Shopkhoev et al. 2025,
ReplaceMe, arXiv 2505.02819.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.config import LinkConfig
from slimformer.prune.outputs import Floats, SubBlock, normed
from slimformer.prune.refit import Evidence, choose

Array = npt.NDArray[np.float64]

RANK_SHARES = (0.0625, 0.125, 0.25)
"""Ranks that are tried, as shares of the channels; from half of them on a matrix is smaller."""

FIRST_DAMPINGS = (0.01, 3.0)
"""Where the search for dampings begins: inputs of links are few and known well, but hardly say
anything of the drift."""

NO_DAMPING = 0.0
"""What constants are fitted with: many tokens know a mean well."""


def link_shapes(channels: int) -> tuple[LinkConfig, ...]:
    """The shapes that a link may have in a model of so many channels, the smallest first."""
    ranks = sorted({max(1, int(share * channels)) for share in RANK_SHARES})
    low = [LinkConfig("low_rank", rank) for rank in ranks if 2 * rank < channels]
    return (LinkConfig("constant"), LinkConfig("diagonal"), *low, LinkConfig("full"))


@dataclasses.dataclass(frozen=True)
class LinearMap:
    """A map by its matrix [outputs, inputs], and the Gram matrix of inputs that it is meant for."""

    matrix: Array
    gram: Array

    def shaped(self, shape: LinkConfig) -> dict[str, Array]:
        """A link's tensors, by their names below the sub-block's, that do most nearly the same.

        "Nearly" is meant on inputs with this Gram matrix: of a low rank that is the map onto the
        largest principal components of the outputs.
        """
        if shape.kind == "full":
            return {"link.weight": self.matrix}
        if shape.kind == "diagonal":
            energy = np.diag(self.gram)
            wanted = np.einsum("oi,io->o", self.matrix, self.gram)
            factors = np.zeros_like(wanted)
            np.divide(wanted, energy, out=factors, where=energy > 0)
            return {"link.weight": factors}
        if shape.kind == "constant":
            return {"link.bias": self.matrix[:, 0]}
        up = np.ascontiguousarray(self._components[:, : shape.rank])
        return {"link.down": up.T @ self.matrix, "link.up": up}

    @functools.cached_property
    def _components(self) -> Array:
        """Principal directions of the outputs, the largest first, [outputs, outputs]."""
        _, vectors = np.linalg.eigh(self.matrix @ self.gram @ self.matrix.T)
        components: Array = vectors[:, ::-1]
        return components


def link_matrix(tensors: Mapping[str, Array]) -> Array:
    """What a link with these tensors multiplies its input by, [outputs, inputs]."""
    if "link.bias" in tensors:
        return tensors["link.bias"][:, None]
    if "link.down" in tensors:
        product: Array = tensors["link.up"] @ tensors["link.down"]
        return product
    weight = tensors["link.weight"]
    return np.diag(weight) if weight.ndim == 1 else weight


def fit_link(
    wishes: Sequence[Sequence[Evidence]], shape: LinkConfig
) -> tuple[dict[str, Array], list[Array]]:
    """A link of this shape, as far as text that it is not fitted on confirms it.

    Parameters
    ----------
    wishes
        What its output is the sum of: what went, and the drift. Of each, evidence from the parts
        of the text, two at least. Fitted as one, the drift, of which inputs know little, draws the
        map of what went towards zero.

    Returns
    -------
    Its tensors, and for each part the matrix of a link that has not seen it.
    """
    together = functools.reduce(operator.add, wishes[0])
    gram, start = together.gram, np.zeros_like(together.cross.T)
    if shape.reads:
        found = [
            choose(parts, start, first=first)
            for parts, first in zip(wishes, FIRST_DAMPINGS, strict=True)
        ]
    else:
        found = [choose(p, start, first=NO_DAMPING, dampings=(NO_DAMPING,)) for p in wishes]
    whole = LinearMap(sum((one.weight for one in found), start), gram)
    unseen = [sum(maps, start) for maps in zip(*(one.without for one in found), strict=True)]
    return whole.shaped(shape), [link_matrix(LinearMap(m, gram).shaped(shape)) for m in unseen]


def link_inputs(
    checkpoint: Checkpoint, index: int, sub_block: SubBlock, stream: Floats, *, reads: bool = True
) -> Floats:
    """What a link in place of this sub-block, whose norm it takes over, is a map of.

    Of one that ``reads`` that is as the stream, of a constant a one for each token, [..., 1].
    """
    if not reads:
        return np.ones((*stream.shape[:-1], 1), np.float32)
    return normed(checkpoint, f"layers.{index}.{sub_block}.norm", stream)
