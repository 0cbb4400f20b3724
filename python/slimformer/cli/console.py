"""What the commands print: results on standard output, progress and errors on the other."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, RenderableType

from slimformer.progress import Progress


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object; numbers that JSON cannot say become null."""
    sys.stdout.write(json.dumps(finite(value), indent=2, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def finite(value: Any) -> Any:
    """The value with infinities and NaNs replaced by ``None``, at any depth."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [finite(item) for item in value]
    return value


def print_tables(*tables: RenderableType) -> None:
    """Print tables to standard output."""
    console = Console()
    for table in tables:
        console.print(table)


def print_error(message: str) -> None:
    """Print one line to standard error."""
    sys.stderr.write(f"error: {message}\n")


def print_note(message: str) -> None:
    """Tell something on standard error that is no part of the result."""
    sys.stderr.write(f"{message}\n")


@contextlib.contextmanager
def progress_display() -> Iterator[Progress]:
    """Show progress on standard error: bars on a terminal, else one line a step."""
    if not sys.stderr.isatty():
        yield _LinePerStep()
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    tasks: dict[str, TaskID] = {}
    with Bars(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bars:

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what)
            bars.update(tasks[what], completed=done, total=total)

        yield show


class _LinePerStep:
    """Names every step once, when it starts."""

    def __init__(self) -> None:
        self._current = ""

    def __call__(self, what: str, done: int, total: int) -> None:
        if what != self._current:
            self._current = what
            print_note(f"{what} ({total})")
