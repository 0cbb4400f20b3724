"""Channels of the residual stream: selection, rotation onto a better basis, and repair."""

from __future__ import annotations

from slimformer.prune.channels.narrowing import repair_narrow
from slimformer.prune.channels.planning import plan_channels
from slimformer.prune.channels.rotation import rotate

__all__ = ["plan_channels", "repair_narrow", "rotate"]
