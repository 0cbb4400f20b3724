from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

PROGRAM = """
import resource

import numpy as np

from slimformer.train.memory import kept_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(64 << 20, np.uint8).fill(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

usual = faults()
with kept_memory():
    faults()
    again = faults()
print(usual, again, faults())
"""
"""Pages that a large block costs when it is allocated and written: before, within and behind.

A process of its own, since free memory that other tests have left would serve the block.
"""


def test_freed_blocks_are_used_again_within_and_given_back_behind() -> None:
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("not glibc")
    output = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True)
    usual, again, behind = map(int, output.stdout.split())
    assert again < usual / 4
    assert behind > usual / 4
