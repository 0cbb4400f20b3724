"""Lists of distinct indices as text: ``(0, 1, 2, 7)`` is ``"0-2,7"``."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

from slimformer.errors import RecipeError

MAX_INDEX = (1 << 20) - 1
"""No structure of a model has more units than this; hostile recipes claim more."""

_RUN = re.compile(r"(0|[1-9][0-9]{0,6})(?:-(0|[1-9][0-9]{0,6}))?", re.ASCII)


def to_runs(indices: Iterable[int]) -> str:
    """Text of an index list; ascending runs of neighbours are joined."""
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
        Not a list of runs, an index that is there twice, or one above ``MAX_INDEX``.
    """
    indices: list[int] = []
    seen: set[int] = set()
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
        new = range(first, last + 1)
        if not seen.isdisjoint(new):
            raise RecipeError(f"{where}: expected each index once, found {run!r} again")
        seen.update(new)
        indices.extend(new)
    return tuple(indices)


def check_indices(indices: tuple[object, ...], where: str) -> None:
    """Raise RecipeError unless the indices are distinct integers from 0, at least one."""
    if not indices:
        raise RecipeError(f"{where}: expected at least one index; leave out what keeps nothing")
    for index in indices:
        if not isinstance(index, int) or isinstance(index, bool):
            raise RecipeError(f"{where}: expected integers, found {index!r}")
        if not 0 <= index <= MAX_INDEX:
            raise RecipeError(f"{where}: expected indices from 0 to {MAX_INDEX}, found {index}")
    if len(set(indices)) < len(indices):
        raise RecipeError(f"{where}: expected each index once")


def check_ascending(indices: tuple[int, ...], where: str) -> None:
    """Raise RecipeError unless the indices are strictly ascending integers from 0."""
    check_indices(indices, where)
    for previous, index in itertools.pairwise(indices):
        if index < previous:
            raise RecipeError(
                f"{where}: expected ascending indices, found {index} after {previous}"
            )
