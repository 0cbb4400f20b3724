"""Rotary scaling as Hugging Face settings and as GGUF metadata say it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.fields import Fields
from slimformer.config import LinearRopeScaling, Llama3RopeScaling, RopeConfig
from slimformer.errors import UnsupportedModelError

RopeScaling = LinearRopeScaling | Llama3RopeScaling | None

LOW_FREQ_FACTOR = 1.0
HIGH_FREQ_FACTOR = 4.0
"""What every Llama 3 uses. Only two of the ramp's three numbers can be told from its factors;
with these two given, the third is the original context."""

_RELATIVE_TOLERANCE = 2e-6
"""Factors are stored as float32 (6e-8) after a float32 computation of a few steps."""


def rope_scaling_from(settings: Fields) -> RopeScaling:
    """The scaling in ``rope_parameters`` (transformers 5) or ``rope_scaling`` (4)."""
    kind = settings.text("rope_type", settings.text("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return LinearRopeScaling(settings.number("factor"))
    if kind == "llama3":
        return Llama3RopeScaling(
            factor=settings.number("factor"),
            low_freq_factor=settings.number("low_freq_factor"),
            high_freq_factor=settings.number("high_freq_factor"),
            original_max_positions=settings.dimension("original_max_position_embeddings"),
        )
    raise UnsupportedModelError(
        f"{settings.where}: rope type {kind!r} does not run here; known: default, linear, llama3"
    )


def rope_scaling_to(scaling: RopeScaling) -> dict[str, Any] | None:
    """The setting ``rope_scaling``, which transformers 4 and 5 read."""
    if isinstance(scaling, LinearRopeScaling):
        return {"rope_type": "linear", "factor": scaling.factor}
    if isinstance(scaling, Llama3RopeScaling):
        return {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_positions,
        }
    return None


def rope_from_gguf(
    metadata: Fields,
    prefix: str,
    rotary_dim: int,
    factors: npt.NDArray[np.float32] | None,
    default_theta: float = 10000.0,
) -> RopeConfig:
    """Rotary settings from GGUF metadata.

    ``factors`` are the values of ``rope_freqs.weight``, [rotary_dim / 2], by which the
    frequencies are divided; Llama 3's scaling is stored in that form.
    """
    theta = metadata.number(f"{prefix}.rope.freq_base", default_theta)
    kind = metadata.text(f"{prefix}.rope.scaling.type", "linear")
    factor = metadata.number(
        f"{prefix}.rope.scaling.factor", metadata.number(f"{prefix}.rope.scale_linear", 1.0)
    )
    if kind not in ("none", "linear"):
        raise UnsupportedModelError(
            f"{metadata.where}: {prefix}.rope.scaling.type: {kind!r} does not run here; known: "
            "none, linear"
        )
    linear = LinearRopeScaling(factor) if factor not in (0.0, 1.0) and kind == "linear" else None
    if factors is None or bool(np.all(factors == 1)):
        return RopeConfig(rotary_dim, theta, linear)
    if linear is not None:
        raise UnsupportedModelError(
            f"{metadata.where}: linear rope scaling together with rope_freqs.weight does not "
            "run here"
        )
    rope = recognise_llama3(rotary_dim, theta, factors)
    if rope is None:
        raise UnsupportedModelError(
            f"{metadata.where}: the factors in rope_freqs.weight are not those of Llama 3's "
            "scaling, the only one known in that form"
        )
    return rope


def recognise_llama3(
    rotary_dim: int, theta: float, factors: npt.NDArray[np.float32]
) -> RopeConfig | None:
    """The Llama 3 scaling that gives these frequency factors, or ``None``.

    Beyond the ramp the factor is constant; each value f on it gives the smoothing
    s = (1/f - 1/factor) / (1 - 1/factor), and from s = (context / wavelength - low) /
    (high - low) the original context, which must come out a whole number that reproduces
    every factor.
    """
    plain = RopeConfig(rotary_dim, theta).inverse_frequencies().astype(np.float64)
    values = factors.astype(np.float64)
    factor = float(values.max())
    if factor <= 1 or values.min() < 1 or not math.isfinite(factor):
        return None
    on_ramp = (values > 1 + 1e-4) & (values < factor * (1 - 1e-4))
    if not on_ramp.any():
        return None
    smooth = (1 / values[on_ramp] - 1 / factor) / (1 - 1 / factor)
    turns = LOW_FREQ_FACTOR + smooth * (HIGH_FREQ_FACTOR - LOW_FREQ_FACTOR)
    context = round(float(np.median(turns * 2 * math.pi / plain[on_ramp])))
    if context < 1:
        return None
    scaling = Llama3RopeScaling(factor, LOW_FREQ_FACTOR, HIGH_FREQ_FACTOR, context)
    rope = RopeConfig(rotary_dim, theta, scaling)
    agrees = np.allclose(
        rope.inverse_frequencies(), plain / values, rtol=_RELATIVE_TOLERANCE, atol=0
    )
    return rope if agrees else None
