"""What an engine may be asked for."""

from __future__ import annotations

from typing import Literal

from slimformer.checkpoint.packed import WeightType
from slimformer.errors import ConfigError

Weights = WeightType
Kv = Literal["f32", "bf16", "int8"]
Sparse = Literal["auto", "never", "smaller"]

DEFAULT_SINKS = 4
"""First tokens that stay in sight of a moving window: as many as its authors found to be enough."""


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises a `ConfigError` unless ``value`` is one of those offered."""
    if value not in choices:
        raise ConfigError(f"{name}: expected one of {', '.join(choices)}, found {value!r}")


def out_of_sight(read: int, window: int | None, sinks: int) -> int:
    """Of ``read`` tokens, those between the sinks and the window that the last of them sees."""
    return 0 if window is None else max(0, read - window - sinks)


def check_window(window: int | None, sinks: int, limit: int) -> None:
    """Raises a `ConfigError` unless a window and its sinks fit a model's ``limit`` of positions."""
    if window is None:
        return
    if sinks < 0:
        raise ConfigError(f"sinks: expected 0 or more, found {sinks}")
    if window < 1 or window + sinks > limit:
        raise ConfigError(
            f"window: expected 1 to {max(limit - sinks, 1)} tokens, which with {sinks} sinks make "
            f"the model's limit of {limit}, found {window}"
        )
