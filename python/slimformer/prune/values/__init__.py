"""Value heads in another basis, so that some of their entries hardly matter."""

from __future__ import annotations

from slimformer.prune.values.alignment import align_values
from slimformer.prune.values.basis import turn_values

__all__ = ["align_values", "turn_values"]
