from __future__ import annotations

import ctypes
import resource

import numpy as np
import pytest

from slimformer.train.memory import kept_memory

BLOCK = 64 << 20


def faults() -> int:
    """Pages that a block costs when it is allocated and written."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(BLOCK, np.uint8).fill(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_freed_blocks_are_used_again_within_and_given_back_behind() -> None:
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("not glibc")
    usual = faults()
    with kept_memory():
        faults()
        again = faults()
    assert again < usual / 4
    assert faults() > usual / 4
