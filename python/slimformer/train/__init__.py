"""Training with PyTorch, which is optional: what is here loads it when it is called."""

from __future__ import annotations

from slimformer.train.convert import from_torch, to_torch
from slimformer.train.optional import has_torch
from slimformer.train.recovery import recover
from slimformer.train.sensitivity import stream_sensitivity
from slimformer.train.settings import Recovery, Settings, Step

__all__ = [
    "Recovery",
    "Settings",
    "Step",
    "from_torch",
    "has_torch",
    "recover",
    "stream_sensitivity",
    "to_torch",
]
