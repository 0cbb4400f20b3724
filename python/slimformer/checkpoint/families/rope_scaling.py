"""Rotary scaling as Hugging Face settings and as GGUF metadata say it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.fields import Fields
from slimformer.config import (
    DynamicRopeScaling,
    LinearRopeScaling,
    Llama3RopeScaling,
    LongRopeScaling,
    RopeConfig,
    RopeScaling,
    YarnRopeScaling,
)
from slimformer.errors import FormatError, UnsupportedModelError

LOW_FREQ_FACTOR = 1.0
HIGH_FREQ_FACTOR = 4.0
"""What every Llama 3 uses. Only two of the ramp's three numbers can be told from its factors;
with these two given, the third is the original context."""

_RELATIVE_TOLERANCE = 2e-6
"""Factors are stored as float32 (6e-8) after a float32 computation of a few steps."""

ORIGINAL_POSITIONS = "original_max_position_embeddings"
"""Among the settings of the rotation, or of the model: then that counts."""


def rope_scaling_from(
    settings: Fields, config: Fields, max_positions: int, aliases: Mapping[str, str]
) -> RopeScaling | None:
    """The scaling in ``rope_parameters`` (transformers 5) or ``rope_scaling`` (4).

    ``settings`` are these, ``config`` are those of the model; ``aliases`` are other names that
    its family has for the types.
    """
    kind = settings.text("rope_type", settings.text("type", "default"))
    kind = aliases.get(kind, kind)
    if kind == "default":
        return None
    if kind == "linear":
        return LinearRopeScaling(settings.number("factor"))
    if kind == "dynamic":
        return DynamicRopeScaling(settings.number("factor"), max_positions)
    if kind not in ("llama3", "yarn", "longrope"):
        raise UnsupportedModelError(
            f"{settings.where}: rope type {kind!r:.60} does not run here; known: default, linear, "
            "dynamic, llama3, yarn, longrope"
        )
    place = config if ORIGINAL_POSITIONS in config else settings
    original = place.dimension(ORIGINAL_POSITIONS, max_positions)
    if kind == "llama3":
        return Llama3RopeScaling(
            factor=settings.number("factor"),
            low_freq_factor=settings.number("low_freq_factor"),
            high_freq_factor=settings.number("high_freq_factor"),
            original_max_positions=original,
        )
    factor = settings.number("factor", max_positions / original)
    if kind == "yarn":
        return YarnRopeScaling(
            factor=factor,
            original_max_positions=original,
            attention_factor=_yarn_attention_factor(settings, factor),
            beta_fast=settings.number("beta_fast", YARN_BETA_FAST),
            beta_slow=settings.number("beta_slow", YARN_BETA_SLOW),
            truncated=settings.boolean("truncate", True),
        )
    default = 1.0
    if factor > 1 and original > 1:
        default = math.sqrt(1 + math.log(factor) / math.log(original))
    return LongRopeScaling(
        short_factors=tuple(map(_single, settings.numbers("short_factor"))),
        long_factors=tuple(map(_single, settings.numbers("long_factor"))),
        original_max_positions=original,
        attention_factor=_single(settings.number("attention_factor", default)),
    )


YARN_BETA_FAST, YARN_BETA_SLOW = 32.0, 1.0
"""The paper's, where a model does not say its own."""


def yarn_magnitude(factor: float, share: float = 1.0) -> float:
    """The paper's growth of cosines and sines with a context ``factor`` times as long."""
    return 0.1 * share * math.log(factor) + 1 if factor > 1 else 1.0


def _yarn_attention_factor(settings: Fields, factor: float) -> float:
    """As it is given, or from DeepSeek's two shares of the paper's, or the paper's."""
    default = yarn_magnitude(factor)
    share, of_all = settings.number("mscale", 0.0), settings.number("mscale_all_dim", 0.0)
    if share and of_all:
        default = yarn_magnitude(factor, share) / yarn_magnitude(factor, of_all)
    return _single(settings.number("attention_factor", default))


def _single(value: float) -> float:
    """Rounded to float32: every engine computes with that, and files keep no more."""
    return float(np.float32(value))


def rope_scaling_to(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """The setting ``rope_scaling``, which transformers 4 and 5 read."""
    if isinstance(scaling, LinearRopeScaling):
        return {"rope_type": "linear", "factor": scaling.factor}
    if isinstance(scaling, DynamicRopeScaling):
        return {"rope_type": "dynamic", "factor": scaling.factor}
    if isinstance(scaling, Llama3RopeScaling):
        return {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            ORIGINAL_POSITIONS: scaling.original_max_positions,
        }
    if isinstance(scaling, YarnRopeScaling):
        return {
            "rope_type": "yarn",
            "factor": scaling.factor,
            "attention_factor": scaling.attention_factor,
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "truncate": scaling.truncated,
            ORIGINAL_POSITIONS: scaling.original_max_positions,
        }
    if isinstance(scaling, LongRopeScaling):
        return {
            "rope_type": "longrope",
            "short_factor": list(scaling.short_factors),
            "long_factor": list(scaling.long_factors),
            "attention_factor": scaling.attention_factor,
            ORIGINAL_POSITIONS: scaling.original_max_positions,
        }
    return None


@dataclasses.dataclass(frozen=True)
class GgufRopeFactors:
    """Tensors of a GGUF file by which frequencies are divided, each [rotary_dim / 2].

    ``all`` are Llama 3's, or those of another scaling that is the same for every sequence;
    ``short`` and ``long`` are LongRoPE's.
    """

    all: npt.NDArray[np.float32] | None = None
    short: npt.NDArray[np.float32] | None = None
    long: npt.NDArray[np.float32] | None = None


def rope_from_gguf(
    metadata: Fields,
    prefix: str,
    rotary_dim: int,
    factors: GgufRopeFactors,
    default_theta: float = 10000.0,
) -> RopeConfig:
    """Rotary settings from GGUF metadata and the factors that are kept as tensors."""
    theta = metadata.number(f"{prefix}.rope.freq_base", default_theta)
    scaling = _gguf_scaling(metadata, f"{prefix}.rope", f"{prefix}.context_length", factors)
    attention_factor = metadata.number(f"{prefix}.rope.{ATTENTION_FACTOR}", 1.0)
    if attention_factor != 1 and not isinstance(scaling, (YarnRopeScaling, LongRopeScaling)):
        metadata.fail(f"{prefix}.rope.{ATTENTION_FACTOR}", "1", attention_factor)
    if factors.all is None or bool(np.all(factors.all == 1)):
        return RopeConfig(rotary_dim, theta, scaling)
    if scaling is not None:
        raise UnsupportedModelError(
            f"{metadata.where}: rope scaling together with rope_freqs.weight does not run here"
        )
    rope = recognise_llama3(rotary_dim, theta, factors.all)
    if rope is None:
        raise UnsupportedModelError(
            f"{metadata.where}: the factors in rope_freqs.weight are not those of Llama 3's "
            "scaling, the only one known in that form"
        )
    return rope


ATTENTION_FACTOR = "scaling.attn_factor"
ORIGINAL_CONTEXT = "scaling.original_context_length"
BETA_FAST, BETA_SLOW = "scaling.yarn_beta_fast", "scaling.yarn_beta_slow"


def _gguf_scaling(
    metadata: Fields, prefix: str, context: str, factors: GgufRopeFactors
) -> RopeScaling | None:
    kind = metadata.text(f"{prefix}.scaling.type", "linear")
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise UnsupportedModelError(
            f"{metadata.where}: {prefix}.scaling.type: {kind!r:.60} does not run here; known: "
            "none, linear, yarn, longrope"
        )
    factor = metadata.number(
        f"{prefix}.scaling.factor", metadata.number(f"{prefix}.scale_linear", 1.0)
    )
    original = metadata.dimension(f"{prefix}.{ORIGINAL_CONTEXT}", metadata.dimension(context))
    attention_factor = metadata.number(f"{prefix}.{ATTENTION_FACTOR}", 1.0)
    if factors.short is not None and factors.long is not None:
        if factor not in (0.0, 1.0):
            metadata.fail(f"{prefix}.scaling.factor", "1 beside factors of LongRoPE", factor)
        return LongRopeScaling(
            tuple(factors.short.tolist()), tuple(factors.long.tolist()), original, attention_factor
        )
    if kind == "longrope" or factors.short is not None or factors.long is not None:
        raise FormatError(
            f"{metadata.where}: LongRoPE: expected the tensors rope_factors_short.weight and "
            "rope_factors_long.weight, found one or none"
        )
    if kind == "none" or factor in (0.0, 1.0):
        return None
    if kind == "linear":
        return LinearRopeScaling(factor)
    return YarnRopeScaling(
        factor=factor,
        original_max_positions=original,
        attention_factor=_single(attention_factor * yarn_magnitude(factor)),
        beta_fast=metadata.number(f"{prefix}.{BETA_FAST}", YARN_BETA_FAST),
        beta_slow=metadata.number(f"{prefix}.{BETA_SLOW}", YARN_BETA_SLOW),
    )


def rope_scaling_to_gguf(scaling: RopeScaling | None) -> dict[str, Any]:
    """The metadata of a scaling, below ``rope.`` of the architecture.

    Factors that are kept as tensors are not among them, nor are the ends of YaRN's ramp: llama.cpp
    passes over them and takes the paper's.
    """
    if isinstance(scaling, LinearRopeScaling):
        return {"scaling.type": "linear", "scaling.factor": scaling.factor}
    if isinstance(scaling, YarnRopeScaling):
        return {
            "scaling.type": "yarn",
            "scaling.factor": scaling.factor,
            ORIGINAL_CONTEXT: scaling.original_max_positions,
            # llama.cpp multiplies by the paper's own growth
            ATTENTION_FACTOR: scaling.attention_factor / yarn_magnitude(scaling.factor),
        }
    if isinstance(scaling, LongRopeScaling):
        return {
            "scaling.type": "longrope",
            ORIGINAL_CONTEXT: scaling.original_max_positions,
            ATTENTION_FACTOR: scaling.attention_factor,
        }
    return {}


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
