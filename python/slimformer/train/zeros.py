"""Weights that are zero stay zero: whoever made them so wants to store or skip them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FEW = 1 / 64
"""Share of zeros up to which they are listed: a dense matrix of bfloat16 has some by chance, and a
mask of all its weights is read as slowly as they are."""


class Zeros:
    """The entries of a module's matrices that are zero now."""

    def __init__(self, module: nn.Module) -> None:
        self._masks: list[tuple[Tensor, Tensor]] = []
        self._places: list[tuple[Tensor, Tensor]] = []
        for weight in (weight for weight in module.parameters() if weight.ndim == 2):
            mask = weight.detach() == 0
            count = int(mask.sum())
            if count > FEW * weight.numel():
                self._masks.append((weight, mask))
            elif count:
                self._places.append((weight, mask.flatten().nonzero()[:, 0]))

    @torch.no_grad()
    def restore(self) -> None:
        """Make them zero again after a step."""
        for weight, mask in self._masks:
            weight.masked_fill_(mask, 0)
        for weight, places in self._places:
            weight.view(-1).index_fill_(0, places, 0)
