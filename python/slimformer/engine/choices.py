"""What an engine may be asked for."""

from __future__ import annotations

from typing import Literal

from slimformer.checkpoint.packed import WeightType
from slimformer.errors import ConfigError

Weights = WeightType
Kv = Literal["f32", "bf16"]
Sparse = Literal["auto", "never", "smaller"]


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises a `ConfigError` unless ``value`` is one of those offered."""
    if value not in choices:
        raise ConfigError(f"{name}: expected one of {', '.join(choices)}, found {value!r}")
