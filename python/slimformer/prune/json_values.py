"""Values of a recipe's JSON: what is not as expected is a ``RecipeError`` that says where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slimformer.errors import RecipeError


def fields_of(
    value: Any, where: str, names: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Mapping[str, Any]:
    """An object that has these names, perhaps the optional ones, and no others."""
    if not isinstance(value, Mapping):
        raise RecipeError(f"{where}: expected an object, found {type(value).__name__}")
    unknown = sorted(str(key) for key in value.keys() - {*names, *optional})
    missing = sorted(set(names) - value.keys())
    if unknown or missing:
        raise RecipeError(f"{where}: unknown keys {unknown[:5]}, missing keys {missing}")
    return value


def integer(value: Any, where: str) -> int:
    """A whole number from 0."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise RecipeError(f"{where}: expected an integer from 0, found {value!r:.40}")
    return value


def string(value: Any, where: str) -> str:
    """Text."""
    if not isinstance(value, str):
        raise RecipeError(f"{where}: expected text, found {type(value).__name__}")
    return value


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names occur once each; the ``object_pairs_hook`` of a JSON reader."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise RecipeError(f"recipe: repeated keys among {sorted(name for name, _ in pairs)[:5]}")
    return fields
