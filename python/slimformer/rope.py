"""Rotary position embeddings and the ways in which they are scaled."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from slimformer.checks import check, check_dimension, check_positive


@dataclasses.dataclass(frozen=True)
class LinearRopeScaling:
    """Positions divided by ``factor`` (position interpolation, Chen et al. 2023)."""

    factor: float

    def __post_init__(self) -> None:
        check_positive("rope scaling factor", self.factor)


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


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding over the first ``rotary_dim`` entries of a head."""

    rotary_dim: int
    theta: float = 10000.0
    scaling: LinearRopeScaling | Llama3RopeScaling | None = None

    def __post_init__(self) -> None:
        check_dimension("rotary_dim", self.rotary_dim)
        check(self.rotary_dim % 2 == 0, f"rotary_dim: expected even, found {self.rotary_dim}")
        check_positive("rope theta", self.theta)

    def inverse_frequencies(self) -> npt.NDArray[np.float32]:
        """Radians per position of each rotary pair, float32 [rotary_dim / 2]."""
        exponents = np.arange(0, self.rotary_dim, 2, dtype=np.float32) / np.float32(self.rotary_dim)
        base = (1.0 / (np.float32(self.theta) ** exponents)).astype(np.float32)
        scaling = self.scaling
        if scaling is None:
            return base
        if isinstance(scaling, LinearRopeScaling):
            return (base / np.float32(scaling.factor)).astype(np.float32)
        wavelength = 2 * math.pi / base
        turns = scaling.original_max_positions / wavelength
        smooth = (turns - scaling.low_freq_factor) / (
            scaling.high_freq_factor - scaling.low_freq_factor
        )
        smooth = np.clip(smooth, 0.0, 1.0)
        return ((1 - smooth) * base / scaling.factor + smooth * base).astype(np.float32)
