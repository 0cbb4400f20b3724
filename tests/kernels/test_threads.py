"""The thread pool under several callers."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from slimformer import _kernels as kernels


def test_several_callers_share_one_pool(rng: np.random.Generator) -> None:
    """Matrices with the same number of threads share a pool; their loops must not mix."""
    ws = [rng.standard_normal((100 + caller, 64), dtype=np.float32) for caller in range(4)]
    x = rng.standard_normal((50, 64), dtype=np.float32)

    def call(w: np.ndarray) -> bool:
        packed = kernels.Matrix("scalar", "f32", w, threads=3)
        expected = np.empty((50, len(w)), np.float32)
        packed.multiply(x, expected)
        y = np.empty_like(expected)
        for _ in range(200):
            y.fill(np.nan)
            packed.linear(x, y)
            if not np.array_equal(y, expected):
                return False
        return True

    with ThreadPoolExecutor(len(ws)) as callers:
        assert all(callers.map(call, ws))


def test_every_panel_is_computed_whatever_the_shares(rng: np.random.Generator) -> None:
    """Fewer panels than threads, as many, and shares of unequal length."""
    x = rng.standard_normal((3, 64), dtype=np.float32)
    for outputs in (1, 16, 17, 100, 400):
        w = rng.standard_normal((outputs, 64), dtype=np.float32)
        packed = kernels.Matrix("scalar", "f32", w, threads=6)
        expected, y = np.empty((2, 3, outputs), np.float32)
        packed.multiply(x, expected)
        for _ in range(50):
            y.fill(np.nan)
            packed.linear(x, y)
            np.testing.assert_array_equal(y, expected)


def test_workers_wake_from_sleep(rng: np.random.Generator) -> None:
    """A loop after a pause finds its workers parked and must wake them."""
    packed = kernels.Matrix(
        "scalar", "f32", rng.standard_normal((64, 64), dtype=np.float32), threads=4
    )
    x = rng.standard_normal((200, 64), dtype=np.float32)
    first, again = np.empty((200, 64), np.float32), np.empty((200, 64), np.float32)
    packed.linear(x, first)
    for _ in range(5):
        time.sleep(0.005)  # a worker watches for some 50 microseconds
        packed.linear(x, again)
        np.testing.assert_array_equal(again, first)
