"""Random models on the engine, beside what the numpy reference says of them."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from reference.forward import Read, ReferenceMask, forward
from reference.models import random_checkpoint, random_config
from reference.quantised import int8_weights, rotated
from reference.tiers import BF16_DOTS
from slimformer import _kernels
from slimformer.checkpoint.checkpoint import DTYPES, Checkpoint
from slimformer.config import AttentionConfig, ModelConfig
from slimformer.engine import Engine, Mask, build_info

TIERS: list[str] = build_info()["tiers"]
"""Every kernel tier that this machine runs."""

TOLERANCE = 1e-4
"""Of the largest logit. Sums of a few hundred float32 products are off by some 1e-6 of their
size; a handful of layers, each with a softmax, multiplies that. The largest seen is 2e-5."""

ROUNDED_INPUTS = 3e-2
"""The same for the median token where the kernels round the inputs of matrix products, to bfloat16
by up to 2^-9. Single tokens may be off by any amount: a random stream of two channels can pass
so near zero that the rounding turns it round. The largest median of 1,500 models is
2.6e-2."""

WHOLE_INPUTS = 0.15
"""The same where they are rounded to int8 in groups, by up to 2^-8 of the group's largest. The
largest median of 1,500 models is 0.13, with int4 weights, on every tier alike;
unrelated logits are off by about 1."""

Weights = Literal["f32", "bf16", "int8", "int4"]

seeds = st.integers(0, 1 << 31)


@dataclasses.dataclass(frozen=True)
class Case:
    """A random model and tokens for it."""

    checkpoint: Checkpoint
    tokens: npt.NDArray[np.int64]
    rng: np.random.Generator

    def engine(self, **options: Any) -> Engine:
        return Engine(self.checkpoint, **{"weights": "f32", "threads": 2, "kv": "f32", **options})

    def reference(
        self, weights: Weights = "f32", mask: Mask | None = None
    ) -> npt.NDArray[np.float64]:
        """Logits [n_tokens, vocab_size] in float64, of what the engine packs."""
        read = packed_read(self.checkpoint, weights)
        given = None if mask is None else ReferenceMask(**dataclasses.asdict(mask))
        return forward(self.checkpoint.config, read, self.tokens.tolist(), given)


def random_case(seed: int, *, max_tokens: int = 150, **shape: Any) -> Case:
    """A model of any ragged shape, a third of them with experts, and 1 to ``max_tokens`` tokens."""
    rng = np.random.default_rng(seed)
    config = random_config(rng, **{"experts": seed % 3 == 2, **shape})
    tokens = rng.integers(0, config.vocab_size, int(rng.integers(1, max_tokens + 1)))
    return Case(random_checkpoint(config, seed), tokens, rng)


def agree(engine: Engine, found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> bool:
    """Whether logits [n_tokens, vocab] or scores [n_tokens] are the reference's to rounding."""
    tolerance = median_tolerance(engine)
    if tolerance is not None and found.size > 0:
        by_token = np.abs(found - expected).reshape(len(found), -1).max(axis=1)
        typical = float(np.median(by_token)) / max(1.0, float(np.abs(expected).max()))
        return typical < tolerance
    return difference(found, expected) < TOLERANCE


def median_tolerance(engine: Engine) -> float | None:
    """How far off the median token may be; None where no input is rounded."""
    if engine.weights in ("int8", "int4"):
        return WHOLE_INPUTS
    return ROUNDED_INPUTS if engine.tier in BF16_DOTS and engine.weights == "bf16" else None


def packed_read(checkpoint: Checkpoint, weights: Weights) -> Read:
    """Tensors as the engine holds them: matrices rounded, vectors as they are."""

    def read(name: str) -> npt.NDArray[Any]:
        values = checkpoint.read_f32(name)
        if (
            values.ndim < 2
            or name in ("positions.weight", "token_types.weight")
            or name.endswith("router.weight")
            or weights == "f32"
        ):
            return values
        if weights == "bf16":
            return values.astype(DTYPES["bf16"]).astype(np.float32)
        if weights == "int8" or reaches_far(checkpoint.config, name):
            return rotated(int8_weights(values))
        return int4_weights(values)

    return read


def reaches_far(config: ModelConfig, name: str) -> bool:
    """Whether int4 keeps a matrix as int8."""
    parts = name.split(".")
    if parts[0] in ("embedding", "head"):
        return True
    attention = config.layers[int(parts[1])].attention
    shared = isinstance(attention, AttentionConfig) and attention.n_heads > attention.n_kv_heads
    return shared and parts[2:4] in (["attention", "k"], ["attention", "v"])


def int4_weights(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What packing as int4 leaves; the kernels' own tests say that it is little enough."""
    packed = _kernels.Matrix(_kernels.selected_tier(), "int4", values)
    rows = np.empty(values.shape, np.float32)
    for index, row in enumerate(rows):
        packed.unpack_row(index, row)
    return rows


def difference(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """The largest difference, in terms of the largest expected value or 1."""
    if found.size == 0 and expected.size == 0:
        return 0.0
    return float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))
