"""Checks that model descriptions share; what fails is a ``ConfigError``."""

from __future__ import annotations

import math
from typing import Any, get_args

from slimformer.errors import ConfigError

MAX_DIMENSION = 1 << 24
"""No single dimension of a model may exceed this; hostile files claim more."""


def check(condition: bool, message: str) -> None:
    """Raise ``ConfigError`` unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def check_dimension(name: str, value: object) -> None:
    """A whole number from 1 to ``MAX_DIMENSION``."""
    check(
        isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_DIMENSION,
        f"{name}: expected an integer from 1 to {MAX_DIMENSION}, found {value!r}",
    )


def check_positive(name: str, value: object) -> None:
    """A finite number above 0."""
    check(
        isinstance(value, (int, float)) and math.isfinite(value) and value > 0,
        f"{name}: expected a finite number above 0, found {value!r}",
    )


def check_choice(name: str, value: object, choices: Any) -> None:
    """One of the values of a ``Literal``."""
    check(
        value in get_args(choices),
        f"{name}: expected one of {', '.join(get_args(choices))}, found {value!r:.60}",
    )


def check_flag(name: str, value: object) -> None:
    """True or false."""
    check(isinstance(value, bool), f"{name}: expected true or false, found {value!r:.60}")
