"""Models at rest: reading, writing and fetching them."""

from __future__ import annotations

from slimformer.checkpoint.cast import cast
from slimformer.checkpoint.checkpoint import Checkpoint, Tensor, TokenizerAssets
from slimformer.checkpoint.loading import load, widths
from slimformer.checkpoint.pulling import pull
from slimformer.checkpoint.saving import check_output, save

__all__ = [
    "Checkpoint",
    "Tensor",
    "TokenizerAssets",
    "cast",
    "check_output",
    "load",
    "pull",
    "save",
    "widths",
]
