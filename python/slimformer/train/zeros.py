"""Weights that are zero stay zero: whoever made them so wants to store or skip them."""

from __future__ import annotations

import torch
from torch import nn


class Zeros:
    """The entries of a module's matrices that are zero now."""

    def __init__(self, module: nn.Module) -> None:
        matrices = [weight for weight in module.parameters() if weight.ndim == 2]
        found = [(weight, weight.detach() == 0) for weight in matrices]
        self._masks = [(weight, mask) for weight, mask in found if bool(mask.any())]

    @torch.no_grad()
    def restore(self) -> None:
        """Make them zero again after a step."""
        for weight, mask in self._masks:
            weight.masked_fill_(mask, 0)
