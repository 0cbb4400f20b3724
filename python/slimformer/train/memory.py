"""Memory that is freed is kept for the next step."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Parameters of mallopt, from glibc's malloc.h."""

_USUAL = {_TRIM_THRESHOLD: 128 * 1024, _MMAP_MAX: 65536}
"""What they are where nobody has set them."""

_KEEPING = {_TRIM_THRESHOLD: -1, _MMAP_MAX: 0}
"""Never give memory back; take no block straight from the system, whither it would return."""


@contextlib.contextmanager
def kept_memory() -> Iterator[None]:
    """Within, the C library gives no memory back to the system; behind it, all that is free.

    Every step of a training frees and allocates the same large blocks. glibc would return each to
    the system and get it back in pages of 4 kB that have to be cleared one by one: a quarter of
    the time of a step on two cores. Where there is another C library nothing happens.
    """
    library = ctypes.CDLL(None)
    if not (hasattr(library, "mallopt") and hasattr(library, "malloc_trim")):
        yield
        return
    try:
        for parameter, value in _KEEPING.items():
            library.mallopt(parameter, value)
        yield
    finally:
        for parameter, value in _USUAL.items():
            library.mallopt(parameter, value)
        library.malloc_trim(0)
