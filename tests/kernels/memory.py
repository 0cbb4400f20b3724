"""Arrays in awkward places: off any alignment, and against pages that cannot be touched."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from slimformer import _kernels as kernels

PLACEMENTS = ("misaligned", "before a guard page", "after a guard page")


def place(array: npt.NDArray[Any], placement: str) -> npt.NDArray[Any]:
    """Copy an array to memory of the wanted kind, aligned to its item and to nothing more."""
    if placement == "misaligned":
        room = np.empty(array.nbytes + 64, np.uint8)
        shift = -room.ctypes.data % 64 + array.itemsize
        target = room[shift : shift + array.nbytes]
    else:
        target = kernels.guarded(array.nbytes, before=placement.startswith("after"))
    placed = target.view(array.dtype).reshape(array.shape)
    placed[...] = array
    return placed
