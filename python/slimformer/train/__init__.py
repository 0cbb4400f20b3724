"""Training with PyTorch, which is optional: what is here loads it when it is called."""

from __future__ import annotations

from slimformer.train.convert import from_torch, to_torch
from slimformer.train.recovery import recover
from slimformer.train.settings import Recovery, Settings, Step

__all__ = ["Recovery", "Settings", "Step", "from_torch", "recover", "to_torch"]
