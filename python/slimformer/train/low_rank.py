"""Low-rank updates of a module's matrices (LoRA; Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

SCALE = 2.0
"""Factor on the update, whatever its rank."""


def add_low_rank(module: nn.Module, rank: int, *, seed: int) -> None:
    """Give each matrix of a frozen module an update of that rank, zero at first.

    Entries that are zero stay zero: the update does not reach them.
    """
    generator = torch.Generator().manual_seed(seed)
    for layer in list(module.modules()):
        for name, weight in list(layer.named_parameters(recurse=False)):
            if weight.ndim == 2:
                update = _LowRank(weight, min(rank, *weight.shape), generator)
                parametrize.register_parametrization(layer, name, update)


def merge_low_rank(module: nn.Module) -> None:
    """Add the updates to the matrices that they belong to."""
    for layer in list(module.modules()):
        if parametrize.is_parametrized(layer):
            for name in list(layer.parametrizations):
                parametrize.remove_parametrizations(layer, name)


class _LowRank(nn.Module):
    """``weight + SCALE * up @ down`` where the weight is not zero."""

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        down = torch.randn(rank, inputs, generator=generator) / math.sqrt(inputs)
        self.down = nn.Parameter(down.to(weight.device))
        self.up = nn.Parameter(torch.zeros(outputs, rank, device=weight.device))
        zeros = weight == 0
        self.register_buffer("zeros", zeros if bool(zeros.any()) else None)

    def forward(self, weight: Tensor) -> Tensor:
        update = SCALE * (self.up @ self.down)
        return weight + (update if self.zeros is None else update.masked_fill(self.zeros, 0))
