"""Budgets: what a pruned model may weigh, in parameters or in bytes."""

from __future__ import annotations

import dataclasses
import math

from slimformer.checkpoint.checkpoint import DTYPES, Checkpoint
from slimformer.errors import BudgetError
from slimformer.prune.structures import Rate


@dataclasses.dataclass(frozen=True)
class Budget:
    """What the model may weigh.

    ``fixed`` is the weight of what no pruning of layers touches, ``unit`` what one unit of the
    user's measure weighs: the dense model for a share, one byte for bytes.
    """

    label: str
    limit: float
    fixed: int
    unit: float
    rate: Rate

    def describe(self, weight: float) -> str:
        """A weight in the user's measure."""
        amount = weight / self.unit
        return f"{amount:.4f}" if self.unit != 1 else f"{math.ceil(amount)} bytes"


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
    return Budget(f"keep {keep}", keep * total, fixed, float(total), lambda name: 1)


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
    return Budget(f"max_bytes {max_bytes}", float(max_bytes), fixed, 1.0, width.__getitem__)


def kept_dtype(checkpoint: Checkpoint, dtype: str) -> str:
    """Element type that a pruned tensor has by default: its own, bf16 for quantised sources."""
    return "bf16" if checkpoint.quantised else dtype
