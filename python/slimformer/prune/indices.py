"""Sorted index lists as text: ``(0, 1, 2, 7)`` is ``"0-2,7"``."""

from __future__ import annotations

import re
from collections.abc import Iterable

from slimformer.errors import RecipeError

MAX_INDEX = (1 << 20) - 1
"""No structure of a model has more units than this; hostile recipes claim more."""

_RUN = re.compile(r"(0|[1-9][0-9]{0,6})(?:-(0|[1-9][0-9]{0,6}))?", re.ASCII)


def to_runs(indices: Iterable[int]) -> str:
    """Text of a strictly ascending index list; runs of neighbours are joined."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def from_runs(text: str, where: str) -> tuple[int, ...]:
    """The index list that ``to_runs`` wrote.

    Raises
    ------
    RecipeError
        Not a list of runs, not strictly ascending, or an index above ``MAX_INDEX``.
    """
    indices: list[int] = []
    for run in text.split(","):
        match = _RUN.fullmatch(run)
        if match is None:
            raise RecipeError(
                f"{where}: expected runs of indices such as '0-63,70', found {run[:40]!r}"
            )
        first = int(match[1])
        last = first if match[2] is None else int(match[2])
        if last > MAX_INDEX or last < first:
            raise RecipeError(
                f"{where}: expected a run from low to high, at most {MAX_INDEX}, found {run!r}"
            )
        if indices and first <= indices[-1]:
            raise RecipeError(
                f"{where}: expected ascending indices, found {first} after {indices[-1]}"
            )
        indices.extend(range(first, last + 1))
    return tuple(indices)


def check_ascending(indices: tuple[object, ...], where: str) -> None:
    """Raise RecipeError unless the indices are strictly ascending integers from 0."""
    if not indices:
        raise RecipeError(f"{where}: expected at least one index; leave out what keeps nothing")
    previous = -1
    for index in indices:
        if not isinstance(index, int) or isinstance(index, bool):
            raise RecipeError(f"{where}: expected integers, found {index!r}")
        if not previous < index <= MAX_INDEX:
            raise RecipeError(
                f"{where}: expected strictly ascending indices from 0 to {MAX_INDEX}, "
                f"found {index} after {previous}"
            )
        previous = index
