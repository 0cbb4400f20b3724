"""Where the zeros of a matrix may stand, and which weights a criterion's scores keep there."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import numpy.typing as npt

from slimformer.errors import ConfigError
from slimformer.prune.sparsify import Kept, largest, largest_of_groups

ANYWHERE = "any"

MAX_SIDE = 4096
"""Longest side of a block, and longest run of N:M: wider than most matrices."""


@dataclasses.dataclass(frozen=True)
class Pattern:
    """One of three: zeros anywhere, ``keep`` of each ``of`` neighbouring inputs, or whole blocks.

    Attributes
    ----------
    keep, of:
        Of each run of ``of`` inputs an output keeps ``keep``; 0 of 0 where runs are not counted.
    rows, columns:
        Outputs and inputs of a block that goes or stays as one.
    """

    keep: int = 0
    of: int = 0
    rows: int = 1
    columns: int = 1

    @staticmethod
    def parse(text: str) -> Pattern:
        """Read ``any``, ``2:4`` (two of four stay) or ``1x16`` (blocks, outputs by inputs).

        Raises
        ------
        ConfigError
            It is none of these.
        """
        if text == ANYWHERE:
            return Pattern()
        match = re.fullmatch(r"([0-9]{1,4})([:x])([0-9]{1,4})", text)
        if match is not None:
            first, second = int(match[1]), int(match[3])
            if match[2] == ":" and 1 <= first < second <= MAX_SIDE:
                return Pattern(keep=first, of=second)
            if match[2] == "x" and 1 <= first <= MAX_SIDE and 1 <= second <= MAX_SIDE:
                return Pattern(rows=first, columns=second)
        raise ConfigError(
            f"pattern: expected {ANYWHERE}, N:M such as 2:4 with N below M, or a block of outputs "
            f"and inputs such as 1x16, found {text!r:.40}"
        )

    def __str__(self) -> str:
        if self.of:
            return f"{self.keep}:{self.of}"
        return ANYWHERE if self.rows == self.columns == 1 else f"{self.rows}x{self.columns}"

    @property
    def share(self) -> float | None:
        """The share of zeros that it comes to, where it says."""
        return 1 - self.keep / self.of if self.of else None

    @property
    def width(self) -> int:
        """Neighbouring inputs that are chosen together."""
        return self.of or self.columns

    def select(self, scores: npt.NDArray[Any], sparsity: float) -> Kept:
        """The weights that are kept, [outputs, inputs].

        Parameters
        ----------
        scores:
            What each weight is worth, 0 or more, [outputs, inputs].
        sparsity:
            Share that becomes zero; without a meaning where the pattern says how many.
        """
        if self.of:
            return largest_of_groups(scores, self.keep, self.of)
        if self.rows == self.columns == 1:
            return largest(scores, sparsity)
        starts = [np.arange(0, n, side) for n, side in zip(scores.shape, self._block, strict=True)]
        sums = np.add.reduceat(np.add.reduceat(scores, starts[0], axis=0), starts[1], axis=1)
        sizes = np.outer(*(np.diff([*at, n]) for at, n in zip(starts, scores.shape, strict=True)))
        kept = largest(sums / sizes, sparsity)
        outputs, inputs = scores.shape
        spread = kept.repeat(self.rows, axis=0).repeat(self.columns, axis=1)
        return np.ascontiguousarray(spread[:outputs, :inputs])

    @property
    def _block(self) -> tuple[int, int]:
        return self.rows, self.columns
