"""Configs as plain values, for files and fingerprints.

Fields that only some families set are left out where they have their default. So files and
fingerprints of other models stay as they are when such a field is added to ``config.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from slimformer.config import (
    AttentionConfig,
    FfnConfig,
    LayerConfig,
    ModelConfig,
    RopeConfig,
    RoutedFfnConfig,
)

_ALWAYS_WRITTEN = ("qkv_bias", "output_bias", "bias", "theta", "scaling")


def _of_some_families(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING and field.name not in _ALWAYS_WRITTEN


def family_settings(config: Any) -> dict[str, Any]:
    """The fields that only some families set, where they differ from their defaults."""
    return {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if _of_some_families(field) and getattr(config, field.name) != field.default
    }


def family_settings_from(read: Callable[[str], Any], kind: type[Any]) -> dict[str, Any]:
    """What ``family_settings`` gave of a config of that kind; ``read`` gives ``None`` for absent.

    The values are as they were found: making the config checks them.
    """
    names = [field.name for field in dataclasses.fields(kind) if _of_some_families(field)]
    return {name: read(name) for name in names if read(name) is not None}


_FAMILY_DEFAULTS = {
    field.name: field.default
    for kind in (AttentionConfig, RopeConfig, FfnConfig, RoutedFfnConfig, LayerConfig, ModelConfig)
    for field in dataclasses.fields(kind)
    if _of_some_families(field)
}


def all_settings(config: ModelConfig) -> dict[str, Any]:
    """All settings as plain values; those of some families as ``family_settings`` has them."""
    return dataclasses.asdict(
        config,
        dict_factory=lambda pairs: {
            name: value
            for name, value in pairs
            if name not in _FAMILY_DEFAULTS or value != _FAMILY_DEFAULTS[name]
        },
    )
