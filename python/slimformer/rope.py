"""Rotary position embeddings and the ways in which they are scaled."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import numpy.typing as npt

from slimformer.checks import check, check_dimension, check_flag, check_positive

_Frequencies = npt.NDArray[np.float32]

MAX_TRAINED_DIM = 1 << 16
"""No head is wider. No tensor bounds what a file claims here, and every pair takes time."""


@dataclasses.dataclass(frozen=True)
class LinearRopeScaling:
    """Positions divided by ``factor`` (position interpolation, Chen et al. 2023)."""

    factor: float

    def __post_init__(self) -> None:
        check_positive("rope scaling factor", self.factor)


@dataclasses.dataclass(frozen=True)
class DynamicRopeScaling:
    """A base that grows with the sequence once that is longer than the model was trained for.

    Up to ``original_max_positions``, the model's limit, nothing changes. Longer sequences do not
    run: each new token would turn at other frequencies than the keys before it.
    """

    factor: float
    original_max_positions: int

    def __post_init__(self) -> None:
        check_positive("rope scaling factor", self.factor)
        check_dimension("rope original_max_positions", self.original_max_positions)


@dataclasses.dataclass(frozen=True)
class Llama3RopeScaling:
    """Llama 3.1's scaling: low frequencies stretched, high ones kept, a ramp between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int

    def __post_init__(self) -> None:
        check_positive("rope scaling factor", self.factor)
        check_positive("rope low_freq_factor", self.low_freq_factor)
        check_positive("rope high_freq_factor", self.high_freq_factor)
        check_dimension("rope original_max_positions", self.original_max_positions)
        check(
            self.low_freq_factor < self.high_freq_factor,
            f"rope scaling: expected low_freq_factor < high_freq_factor, found "
            f"{self.low_freq_factor} and {self.high_freq_factor}",
        )

    def scaled(self, base: _Frequencies) -> _Frequencies:
        """Inverse frequencies from unscaled ones."""
        turns = self.original_max_positions / (2 * math.pi / base)
        smooth = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        smooth = np.clip(smooth, 0.0, 1.0)
        return ((1 - smooth) * base / self.factor + smooth * base).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class YarnRopeScaling:
    """YaRN (Peng et al. 2023): pairs that turn slowly are stretched, fast ones kept.

    The ramp between them begins at the pair that turns ``beta_fast`` times in the original
    context and ends at the one that turns ``beta_slow`` times; its ends are whole pairs if they
    are ``truncated``. Cosines and sines are multiplied by ``attention_factor``.
    """

    factor: float
    original_max_positions: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncated: bool = True

    def __post_init__(self) -> None:
        for name in ("factor", "attention_factor", "beta_fast", "beta_slow"):
            check_positive(f"rope {name}", getattr(self, name))
        check_dimension("rope original_max_positions", self.original_max_positions)
        check_flag("rope truncated", self.truncated)

    def scaled(self, base: _Frequencies, theta: float) -> _Frequencies:
        """Inverse frequencies from unscaled ones, which fall from 1 as powers of ``theta``."""
        dim = 2 * len(base)
        low, high = (
            dim
            * math.log(self.original_max_positions / (turns * 2 * math.pi))
            / (2 * math.log(theta))
            for turns in (self.beta_fast, self.beta_slow)
        )
        if self.truncated:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        width = high - low if high != low else 0.001
        pairs = np.arange(len(base), dtype=np.float32)
        kept = 1 - np.clip((pairs - np.float32(low)) / np.float32(width), 0, 1)
        stretched = base / np.float32(self.factor)
        scaled: _Frequencies = (stretched * (1 - kept) + base * kept).astype(np.float32)
        return scaled


@dataclasses.dataclass(frozen=True)
class LongRopeScaling:
    """LongRoPE (Ding et al. 2024): a factor for every pair, and others for long sequences.

    Sequences of up to ``original_max_positions`` turn at frequencies divided by
    ``short_factors``, longer ones by ``long_factors`` from their first token on. Cosines and
    sines are multiplied by ``attention_factor``.
    """

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_max_positions: int
    attention_factor: float

    def __post_init__(self) -> None:
        for name in ("short_factors", "long_factors"):
            for factor in getattr(self, name):
                check_positive(f"rope {name}", factor)
        check_dimension("rope original_max_positions", self.original_max_positions)
        check_positive("rope attention_factor", self.attention_factor)

    def scaled(self, base: _Frequencies, length: int) -> _Frequencies:
        """Inverse frequencies from unscaled ones, for a sequence of that length."""
        long = length > self.original_max_positions
        factors = np.asarray(self.long_factors if long else self.short_factors, np.float32)
        return (1 / (factors * (1 / base))).astype(np.float32)


RopeScaling = (
    LinearRopeScaling | DynamicRopeScaling | Llama3RopeScaling | YarnRopeScaling | LongRopeScaling
)


@dataclasses.dataclass(frozen=True)
class KeptPairs:
    """Rotary pairs that are left of those of a head as it was trained.

    ``pairs`` are their numbers, ascending, among the ``trained_dim / 2`` pairs of that head. Each
    goes on turning at the frequency that it was trained with.
    """

    trained_dim: int
    pairs: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_rotary_dim("rope trained_dim", self.trained_dim)
        check(
            self.trained_dim <= MAX_TRAINED_DIM,
            f"rope trained_dim: expected at most {MAX_TRAINED_DIM}, found {self.trained_dim}",
        )
        count = self.trained_dim // 2
        fits = all(type(pair) is int and 0 <= pair < count for pair in self.pairs)
        check(fits, f"rope pairs: expected whole numbers from 0 to {count - 1}, found others")
        ascending = all(a < b for a, b in itertools.pairwise(self.pairs))
        check(ascending, "rope pairs: expected ascending numbers, each once")
        check(len(self.pairs) < count, f"rope pairs: expected fewer than all {count}")


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding over the first ``rotary_dim`` entries of a head.

    ``theta`` and ``scaling`` give the frequencies of all pairs that the head was trained with;
    ``kept`` says which of them are left, ``None``: all.
    """

    rotary_dim: int
    theta: float = 10000.0
    scaling: RopeScaling | None = None
    kept: KeptPairs | None = None

    def __post_init__(self) -> None:
        _check_rotary_dim("rotary_dim", self.rotary_dim)
        check_positive("rope theta", self.theta)
        if self.kept is not None:
            wanted = 2 * len(self.kept.pairs)
            check(
                self.rotary_dim == wanted,
                f"rotary_dim: expected {wanted}, two for each kept pair, found {self.rotary_dim}",
            )
        if isinstance(self.scaling, YarnRopeScaling):
            check(self.theta > 1, f"rope theta: expected above 1 with YaRN, found {self.theta}")
        if isinstance(self.scaling, LongRopeScaling):
            pairs = self.trained_dim // 2
            for name in ("short_factors", "long_factors"):
                found = len(getattr(self.scaling, name))
                check(found == pairs, f"rope {name}: expected {pairs}, one a pair, found {found}")

    @property
    def trained_dim(self) -> int:
        """Entries of a head that rotated before any pair went."""
        return self.rotary_dim if self.kept is None else self.kept.trained_dim

    def trained(self) -> RopeConfig:
        """The same with every pair."""
        return dataclasses.replace(self, rotary_dim=self.trained_dim, kept=None)

    def only(self, pairs: tuple[int, ...]) -> RopeConfig:
        """The same with those pairs alone of the ones that are left, ascending."""
        if len(pairs) == self.rotary_dim // 2:
            return self
        before = range(self.rotary_dim // 2) if self.kept is None else self.kept.pairs
        kept = KeptPairs(self.trained_dim, tuple(before[pair] for pair in pairs))
        return dataclasses.replace(self, rotary_dim=2 * len(pairs), kept=kept)

    @property
    def amplitude(self) -> float:
        """What cosines and sines are multiplied by."""
        if isinstance(self.scaling, (YarnRopeScaling, LongRopeScaling)):
            return self.scaling.attention_factor
        return 1.0

    @property
    def usual_length(self) -> int | None:
        """Positions beyond which a whole sequence turns at other frequencies; ``None`` if never."""
        scaling = self.scaling
        return scaling.original_max_positions if isinstance(scaling, LongRopeScaling) else None

    def inverse_frequencies(self, length: int = 1) -> _Frequencies:
        """Radians per position of each rotary pair, float32 [rotary_dim / 2].

        They are those of a sequence that comes to ``length`` positions.
        """
        frequencies = self._trained_frequencies(length)
        return frequencies if self.kept is None else frequencies[list(self.kept.pairs)]

    def _trained_frequencies(self, length: int) -> _Frequencies:
        """Those of every pair that a head was trained with, [trained_dim / 2]."""
        dim = self.trained_dim
        exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
        base = (1.0 / (np.float32(self.theta) ** exponents)).astype(np.float32)
        scaling = self.scaling
        if isinstance(scaling, LinearRopeScaling):
            return (base / np.float32(scaling.factor)).astype(np.float32)
        if isinstance(scaling, Llama3RopeScaling):
            return scaling.scaled(base)
        if isinstance(scaling, YarnRopeScaling):
            return scaling.scaled(base, self.theta)
        if isinstance(scaling, LongRopeScaling):
            return scaling.scaled(base, length)
        return base


def _check_rotary_dim(name: str, value: int) -> None:
    """Whole pairs, one at least."""
    check_dimension(name, value)
    check(value % 2 == 0, f"{name}: expected even, found {value}")
