"""How long work tells its caller that it is getting on."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with what is being done, the number of steps done, and the total of steps."""


def silent(what: str, done: int, total: int) -> None:
    """Report nothing."""
