from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimformer.prune.stream import Windows
from slimformer.prune.windows import in_parts, shortened, split


def windows(count: int, tokens: int) -> Windows:
    """Windows of tokens that are all different."""
    return np.arange(count * tokens, dtype=np.int32).reshape(count, tokens)


@given(st.integers(1, 40), st.integers(2, 30), st.floats(0, 1))
def test_no_text_is_fitted_and_judged_on(count: int, tokens: int, share: float) -> None:
    fit, judged = split(windows(count, tokens), share)
    assert 1 <= len(judged) <= len(fit)
    assert fit.max() < judged.min()
    assert fit.size + judged.size == count * tokens - (tokens % 2 if count == 1 else 0)


@pytest.mark.parametrize(("count", "share", "judged"), [(8, 0.25, 2), (8, 0.01, 1), (8, 0.9, 4)])
def test_the_last_windows_are_judged_on(count: int, share: float, judged: int) -> None:
    given_ones = windows(count, 10)
    fit, rest = split(given_ones, share)
    np.testing.assert_array_equal(fit, given_ones[:-judged])
    np.testing.assert_array_equal(rest, given_ones[-judged:])


def test_those_to_judge_on_may_be_shorter() -> None:
    fit, judged = split(windows(4, 10), 0.25, length=4)
    assert fit.shape == (3, 10)
    np.testing.assert_array_equal(judged, [[30, 31, 32, 33], [34, 35, 36, 37]])


def test_windows_are_cut_into_pieces_and_never_lengthened() -> None:
    np.testing.assert_array_equal(shortened(windows(1, 7), 3), [[0, 1, 2], [3, 4, 5]])
    assert shortened(windows(2, 7), 100).shape == (2, 7)


@given(st.integers(1, 20), st.integers(2, 9), st.integers(2, 6))
def test_parts_are_even_and_two_at_least(count: int, tokens: int, parts: int) -> None:
    found = in_parts(windows(count, tokens), parts)
    sizes = [len(part) for part in found]
    assert len(found) == min(parts, max(2, count))
    assert max(sizes) - min(sizes) <= 1
    together = np.concatenate(found)
    assert len(np.unique(together)) == together.size


@pytest.mark.parametrize("texts", [2, 3, 4])
def test_every_part_has_some_of_each_text(texts: int) -> None:
    in_turn = np.arange(48, dtype=np.int32)[:, None].repeat(2, axis=1) % texts
    for part in in_parts(in_turn, 4):
        assert set(part[:, 0].tolist()) == set(range(texts))
