"""When two engines agree."""

from __future__ import annotations

import dataclasses
import math

import pytest

from slimformer.errors import VerificationError
from slimformer.export.verify import Verification

FOUND = Verification("llama.cpp", 255, 20.0, 20.05, 0.005, same_tokens=True)


def test_small_differences_pass() -> None:
    assert FOUND.difference == pytest.approx(0.0025)
    FOUND.check()


@pytest.mark.parametrize("theirs", [20.2, 19.8, math.nan, math.inf])
def test_large_ones_do_not(theirs: float) -> None:
    with pytest.raises(VerificationError, match="do not use it"):
        dataclasses.replace(FOUND, theirs=theirs).check()


def test_a_vector_must_be_the_same_one() -> None:
    found = Verification("transformers", 90, 1.0, 0.98, 0.005, same_tokens=True, measure="cosine")
    with pytest.raises(VerificationError, match=r"a cosine of 0\.9800 where 1\.0000 was"):
        found.check()


def test_other_tokens_do_not() -> None:
    with pytest.raises(VerificationError, match="into other tokens"):
        dataclasses.replace(FOUND, same_tokens=False).check()
