"""Pruning: measure what matters, remove the rest, repair what is left."""

from __future__ import annotations

from slimformer.prune.balancing import balance
from slimformer.prune.calibrate import load_calibration
from slimformer.prune.channels import plan_channels, rotate
from slimformer.prune.masks import to_mask
from slimformer.prune.nesting import nest, prune_nested
from slimformer.prune.pairs import dearest_pairs
from slimformer.prune.pipeline import Profile, explicit, profile, prune
from slimformer.prune.planning import plan
from slimformer.prune.recipe import Recipe
from slimformer.prune.sample import sample_calibration
from slimformer.prune.surgery import apply
from slimformer.prune.timing import Setting
from slimformer.prune.values import align_values
from slimformer.prune.vocabulary import cut_to_text

__all__ = [
    "Profile",
    "Recipe",
    "Setting",
    "align_values",
    "apply",
    "balance",
    "cut_to_text",
    "dearest_pairs",
    "explicit",
    "load_calibration",
    "nest",
    "plan",
    "plan_channels",
    "profile",
    "prune",
    "prune_nested",
    "rotate",
    "sample_calibration",
    "to_mask",
]
