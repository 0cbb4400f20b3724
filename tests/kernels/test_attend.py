"""Attention over KV pages against a softmax in float64."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from kernels.memory import place
from reference.tiers import BF16_DOTS
from slimformer import _kernels as kernels

EPS = 2.0**-24
EPS_BF16 = 2.0**-9
PAGE = kernels.PAGE_POSITIONS
LANES = kernels.KEY_LANES

KV_TYPES = ["f32", "bf16", "int8"]

F32 = npt.NDArray[np.float32]


def lay_out(keys: F32, values: F32, kv: str) -> list[npt.NDArray[Any]]:
    """Keys and values [PAGE, width] as they lie in a page; int8 ones in units of their scales."""
    if kv == "f32":
        return [
            np.ascontiguousarray(keys.reshape(PAGE // LANES, LANES, -1).swapaxes(1, 2)),
            values,
        ]
    keys = np.pad(keys, ((0, 0), (0, keys.shape[1] % 2)))
    key_pairs = keys.reshape(PAGE // LANES, LANES, -1, 2).swapaxes(1, 2)
    value_pairs = values.reshape(PAGE // 2, 2, -1).swapaxes(1, 2)
    pairs = [np.ascontiguousarray(part) for part in (key_pairs, value_pairs)]
    if kv == "int8":
        return [np.rint(part).astype(np.int8) for part in pairs]
    return [part.astype(ml_dtypes.bfloat16).view(np.uint16) for part in pairs]


class Case:
    """Queries over some pages; query r sees the positions begin[r] <= p < end[r]."""

    def __init__(
        self, rng: np.random.Generator, rows: int, head_dim: int, value_dim: int, pages: int
    ) -> None:
        positions = pages * PAGE
        self.q = rng.standard_normal((rows, head_dim), dtype=np.float32) / np.float32(
            np.sqrt(head_dim)
        )
        self.keys = rng.standard_normal((positions, head_dim), dtype=np.float32)
        self.values = rng.standard_normal((positions, value_dim), dtype=np.float32)
        self.begin = rng.integers(0, positions, rows)
        self.end = np.minimum(self.begin + rng.integers(1, positions, rows), positions)
        self.end[rows // 2] = self.begin[rows // 2]  # one that sees nothing at all
        self.soft_cap = 0.0
        self.key_scales = np.ones(positions, np.float32)
        self.value_scales = np.ones(positions, np.float32)

    def round_pages(self, kv: str) -> None:
        """Keys and values become what pages of the type hold."""
        if kv == "bf16":
            self.keys = self.keys.astype(ml_dtypes.bfloat16).astype(np.float32)
            self.values = self.values.astype(ml_dtypes.bfloat16).astype(np.float32)
        elif kv == "int8":
            for part, scales in ((self.keys, self.key_scales), (self.values, self.value_scales)):
                scales[:] = np.abs(part).max(axis=1) / 127
                part[:] = np.rint(part / scales[:, None]) * scales[:, None]

    def run(self, tier: str, kv: str, placement: str, rows: slice = slice(None)) -> F32:
        """What the kernel makes of the chosen rows, page after page; NaN where none is seen."""
        q = place(self.q[rows], placement)
        count, value_dim = q.shape[0], self.values.shape[1]
        out = place(np.zeros((count, value_dim), np.float32), placement)
        top = place(np.full(count, -np.inf, np.float32), placement)
        total = place(np.zeros(count, np.float32), placement)
        size = kernels.attend_scratch(q.shape[1], value_dim)
        scratch = place(np.full(size, np.nan, np.float32), placement)
        for first in range(0, len(self.keys), PAGE):
            page = slice(first, first + PAGE)
            scales = self.key_scales[page], self.value_scales[page]
            stored = lay_out(
                self.keys[page] / scales[0][:, None], self.values[page] / scales[1][:, None], kv
            )
            page_keys, page_values = (place(part, placement) for part in stored)
            begin, end = (
                place(np.clip(edge[rows] - first, 0, PAGE).astype(np.int32), placement)
                for edge in (self.begin, self.end)
            )
            kernels.attend(
                tier,
                q,
                page_keys,
                page_values,
                begin,
                end,
                top,
                total,
                out,
                scratch,
                self.soft_cap,
                *(place(part, placement) for part in scales if kv == "int8"),
            )
        with np.errstate(invalid="ignore"):
            return np.asarray(out / total[:, None])

    def expected(self, *, rounded: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """The answer, and how far off it may be where queries and weights are rounded or not."""
        q, keys, values = (a.astype(np.float64) for a in (self.q, self.keys, self.values))
        answer = np.full((len(q), values.shape[1]), np.nan)
        bound = np.full_like(answer, np.nan)
        for r, (begin, end) in enumerate(zip(self.begin, self.end, strict=True)):
            if begin >= end:
                continue
            seen = slice(begin, end)
            scores = keys[seen] @ q[r]
            if self.soft_cap > 0:
                scores = self.soft_cap * np.tanh(scores / self.soft_cap)
            weights = np.exp(scores - scores.max())
            weights /= weights.sum()
            answer[r] = weights @ values[seen]
            # An error of a score is a relative error of its weight: sqrt(head_dim) roundings of
            # sum |q k|. exp and the rescaling of each page add ten, the sums over positions
            # sqrt(positions).
            magnitude = (np.abs(keys[seen]) @ np.abs(q[r])).max()
            roundings = 2 * np.sqrt(q.shape[1]) * magnitude + 10 + 2 * np.sqrt(end - begin)
            roundings += 14 * self.soft_cap
            error = roundings * EPS
            if rounded:  # a score is off by its query's rounding, a weight by that and its own
                error += (magnitude + 2) * EPS_BF16
            bound[r] = error * (weights @ np.abs(values[seen]))
        return answer, bound


@pytest.mark.parametrize("kv", KV_TYPES)
@pytest.mark.parametrize(
    ("rows", "head_dim", "value_dim", "pages"),
    [(1, 64, 64, 3), (3, 64, 64, 2), (2, 1, 1, 1), (5, 37, 7, 2), (7, 64, 333, 1), (13, 33, 37, 3)],
)
def test_attend(
    tier: str,
    placement: str,
    kv: str,
    rows: int,
    head_dim: int,
    value_dim: int,
    pages: int,
    rng: np.random.Generator,
) -> None:
    case = Case(rng, rows, head_dim, value_dim, pages)
    case.round_pages(kv)
    got = case.run(tier, kv, placement)
    expected, bound = case.expected(rounded=kv != "f32" and tier in BF16_DOTS)
    blind = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(got), blind)
    assert (np.abs(got - expected) <= bound)[~blind].all()


@pytest.mark.parametrize("kv", KV_TYPES)
def test_soft_cap(tier: str, kv: str, rng: np.random.Generator) -> None:
    case = Case(rng, 5, 37, 7, 2)
    case.q *= 3
    case.soft_cap = 2.5
    case.round_pages(kv)
    expected, bound = case.expected(rounded=kv != "f32" and tier in BF16_DOTS)
    seen = ~np.isnan(expected)
    assert (np.abs(case.run(tier, kv, "misaligned") - expected) <= bound)[seen].all()


@pytest.mark.parametrize("kv", KV_TYPES)
def test_rows_do_not_depend_on_their_neighbours(
    tier: str, kv: str, rng: np.random.Generator
) -> None:
    case = Case(rng, 13, 64, 64, 2)
    together = case.run(tier, kv, "misaligned")
    for row in range(13):
        apart = case.run(tier, kv, "misaligned", slice(row, row + 1))
        np.testing.assert_array_equal(apart[0], together[row])


def test_scores_far_apart(tier: str) -> None:
    """Scores of +-1000 overflow exp unless the maximum is taken off, also across pages."""
    rng = np.random.default_rng(3)
    case = Case(rng, 4, 8, 8, 2)
    case.q *= 1000
    case.begin[:] = 0
    case.end[:] = 2 * PAGE
    got = case.run(tier, "f32", "misaligned")
    expected, bound = case.expected()
    assert (np.abs(got - expected) <= bound).all()


def test_not_a_number_stays_in_its_row(tier: str, rng: np.random.Generator) -> None:
    case = Case(rng, 4, 8, 8, 1)
    case.begin[:], case.end[:] = 0, PAGE
    clean = case.run(tier, "f32", "misaligned")
    case.q[2, 5] = np.nan
    got = case.run(tier, "f32", "misaligned")
    assert np.isnan(got[2]).all()
    np.testing.assert_array_equal(np.delete(got, 2, 0), np.delete(clean, 2, 0))
