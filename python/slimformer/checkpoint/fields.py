"""Typed access to the settings of a model file, and JSON read as untrusted input."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

from slimformer.config import MAX_DIMENSION
from slimformer.errors import FormatError, StorageError

MAX_JSON_BYTES = 16 << 20
"""Largest settings file that is read; real ones have a few kilobytes."""

_T = TypeVar("_T")


class Fields:
    """Settings by key; a value of another type is a ``FormatError`` that says where.

    ``where`` opens every message, e.g. ``model.gguf: metadata``. A JSON ``null`` counts as
    absent.
    """

    def __init__(self, where: str, values: Mapping[str, Any]) -> None:
        self.where = where
        self._values = values

    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def raw(self, key: str) -> Any:
        """The value as it was found, ``None`` when absent."""
        return self._values.get(key)

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number; without a default the key is required."""
        return self._get(key, default, "an integer", lambda v: type(v) is int)

    def dimension(self, key: str, default: int | None = None, *, limit: int = MAX_DIMENSION) -> int:
        """A whole number from 1 to ``limit``."""
        value = self.integer(key, default)
        if not 1 <= value <= limit:
            self.fail(key, f"an integer from 1 to {limit}", value)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number."""
        fits = lambda v: type(v) in (int, float) and math.isfinite(v)  # noqa: E731
        return float(self._get(key, default, "a finite number", fits))

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        return self._get(key, default, "a string", lambda v: isinstance(v, str))

    def boolean(self, key: str, default: bool | None = None) -> bool:
        """True or false."""
        return self._get(key, default, "a boolean", lambda v: isinstance(v, bool))

    def texts(self, key: str) -> list[str]:
        """A list of strings, required."""
        fits = lambda v: isinstance(v, list) and all(isinstance(x, str) for x in v)  # noqa: E731
        return self._get(key, None, "a list of strings", fits)

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of finite numbers, required."""
        fits = lambda v: type(v) in (int, float) and math.isfinite(v)  # noqa: E731
        values: list[float] = self._get(
            key,
            None,
            "a list of finite numbers",
            lambda v: isinstance(v, list) and all(map(fits, v)),
        )
        return tuple(map(float, values))

    def array(self, key: str) -> npt.NDArray[Any]:
        """An array of numbers (GGUF), required."""
        return self._get(key, None, "an array of numbers", lambda v: isinstance(v, np.ndarray))

    def child(self, key: str) -> Fields:
        """An object inside this one; empty when absent."""
        values: dict[str, Any] = self._get(key, {}, "an object", lambda v: isinstance(v, dict))
        return Fields(f"{self.where}: {key}", values)

    def fail(self, key: str, expected: str, found: object) -> NoReturn:
        """Raise the ``FormatError`` of a value that does not fit."""
        shown = "an array" if isinstance(found, (list, np.ndarray)) else f"{found!r:.60}"
        raise FormatError(f"{self.where}: {key}: expected {expected}, found {shown}")

    def _get(self, key: str, default: _T | None, kind: str, fits: Callable[[Any], bool]) -> _T:
        value = self._values.get(key)
        if value is None:
            value = default
        if value is None:
            raise FormatError(f"{self.where}: {key}: expected {kind}, found none")
        if not fits(value):
            self.fail(key, kind, value)
        return value


def read_text(path: Path, limit: int = MAX_JSON_BYTES) -> str:
    """The text of a file of at most ``limit`` bytes, strictly UTF-8."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise StorageError(f"{path}: cannot read: {error}") from error
    if len(data) > limit:
        raise FormatError(f"{path}: expected at most {limit} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not UTF-8: {error}") from error


def parse_json_object(text: str, where: str) -> dict[str, Any]:
    """A JSON object; no key twice, no NaN, no half characters, no nesting without end."""
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
        if "\\ud" in text.lower():  # an escaped surrogate: one of a pair, or alone and no text
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise FormatError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of at most 16 MB."""
    return parse_json_object(read_text(path), str(path))


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key is given twice")
    return values


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
