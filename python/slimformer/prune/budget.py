"""Budgets: what a pruned model may weigh, in parameters or in bytes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from slimformer.checkpoint.checkpoint import DTYPES, Checkpoint
from slimformer.config import ModelConfig
from slimformer.errors import BudgetError
from slimformer.prune.structures import Price, layer_price, parameters_price


@dataclasses.dataclass(frozen=True)
class Budget:
    """What the model may weigh.

    ``fixed`` is the weight of what no pruning of layers touches, ``unit`` what one unit of the
    user's measure weighs, which ``measure`` writes: the dense model for a share, one byte for
    bytes. ``price`` says what the parts of a model's layer weigh.
    """

    label: str
    limit: float
    fixed: int
    unit: float
    measure: str
    price: Callable[[ModelConfig, int], Price]

    def describe(self, weight: float) -> str:
        """A weight in the user's measure."""
        return self.measure.format(weight / self.unit)


def keep_budget(checkpoint: Checkpoint, keep: float) -> Budget:
    """At most the share ``keep`` of the parameters outside embedding and head.

    Raises
    ------
    BudgetError
        ``keep`` is not above 0 and at most 1.
    """
    if not 0 < keep <= 1:
        raise BudgetError(f"keep: expected a share above 0 and at most 1, found {keep}")
    total = checkpoint.config.non_embedding_parameters()
    fixed = checkpoint.config.fixed_parameters()
    return Budget(f"keep {keep}", keep * total, fixed, float(total), "{:.4f}", parameters_price)


def bytes_budget(checkpoint: Checkpoint, max_bytes: int) -> Budget:
    """At most ``max_bytes`` for all tensors, in the element types that pruning keeps them in.

    Raises
    ------
    BudgetError
        ``max_bytes`` is below 1.
    """
    if max_bytes < 1:
        raise BudgetError(f"max_bytes: expected at least 1, found {max_bytes}")
    width = {
        name: DTYPES[kept_dtype(checkpoint, tensor.dtype)].itemsize
        for name, tensor in checkpoint.tensors.items()
    }
    fixed = sum(
        math.prod(tensor.shape) * width[name]
        for name, tensor in checkpoint.tensors.items()
        if not name.startswith("layers.")
    )

    def price(config: ModelConfig, index: int) -> Price:
        # What a model does not have yet, a link, is stored as its embedding is.
        return layer_price(config, index, lambda name: width.get(name, width["embedding.weight"]))

    return Budget(f"max_bytes {max_bytes}", float(max_bytes), fixed, 1.0, "{:.0f} bytes", price)


def kept_dtype(checkpoint: Checkpoint, dtype: str) -> str:
    """Element type that a pruned tensor has by default: its own, bf16 for quantised sources."""
    return "bf16" if checkpoint.quantised else dtype
