"""What options of ``slimformer prune`` may be."""

from __future__ import annotations

import enum


class Repair(str, enum.Enum):
    """What is done to the weights that stay."""

    REFIT = "refit"
    MEAN = "mean"
    NONE = "none"


class Effort(str, enum.Enum):
    """How much work goes into choosing and repairing."""

    FAST = "fast"
    BALANCED = "balanced"
    THOROUGH = "thorough"


class Dtype(str, enum.Enum):
    """Element types of a saved model."""

    AUTO = "auto"
    F32 = "f32"
    BF16 = "bf16"
    F16 = "f16"


class Phase(str, enum.Enum):
    """What a speed-up is for."""

    PREFILL = "prefill"
    DECODE = "decode"


class Zeros(str, enum.Enum):
    """How weights are chosen that become zero."""

    SPARSEGPT = "sparsegpt"
    WANDA = "wanda"
    MAGNITUDE = "magnitude"


class Mix(str, enum.Enum):
    """Who decides what comes from structure, what from zeros and what from bits."""

    AUTO = "auto"


class Sharing(str, enum.Enum):
    """How zeros are shared out among matrices."""

    LOSS = "loss"
    EVEN = "even"
