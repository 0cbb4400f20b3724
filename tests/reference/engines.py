"""Random models on the engine, beside what the numpy reference says of them."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from reference.forward import Read, ReferenceMask, forward
from reference.models import random_checkpoint, random_config
from slimformer.checkpoint.checkpoint import DTYPES, Checkpoint
from slimformer.engine import Engine, Mask, build_info

TIERS: list[str] = build_info()["tiers"]
"""Every kernel tier that this machine runs."""

TOLERANCE = 1e-4
"""Of the largest logit. Sums of a few hundred float32 products are off by some 1e-6 of their
size; a handful of layers, each with a softmax, multiplies that. The largest seen is 2e-5."""

ROUNDED_INPUTS = 2e-2
"""The same for the median token where the kernels round the inputs of matrix products, to bfloat16
by up to 2^-9. Single tokens may be off by any amount: a random stream of two channels can pass
so near zero that the rounding turns it round. The largest median of 600 models is 8e-3."""

Weights = Literal["f32", "bf16"]

seeds = st.integers(0, 1 << 31)


@dataclasses.dataclass(frozen=True)
class Case:
    """A random model and tokens for it."""

    checkpoint: Checkpoint
    tokens: npt.NDArray[np.int64]
    rng: np.random.Generator

    def engine(self, **options: Any) -> Engine:
        return Engine(self.checkpoint, **{"weights": "f32", "threads": 2, **options})

    def reference(
        self, weights: Weights = "f32", mask: Mask | None = None
    ) -> npt.NDArray[np.float64]:
        """Logits [n_tokens, vocab_size] in float64, of what the engine packs."""
        read = packed_read(self.checkpoint, weights)
        given = None if mask is None else ReferenceMask(**dataclasses.asdict(mask))
        return forward(self.checkpoint.config, read, self.tokens.tolist(), given)


def random_case(seed: int, *, max_tokens: int = 150, **shape: Any) -> Case:
    """A model of any ragged shape, and 1 to ``max_tokens`` tokens."""
    rng = np.random.default_rng(seed)
    config = random_config(rng, **shape)
    tokens = rng.integers(0, config.vocab_size, int(rng.integers(1, max_tokens + 1)))
    return Case(random_checkpoint(config, seed), tokens, rng)


def agree(engine: Engine, found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> bool:
    """Whether logits [n_tokens, vocab] or scores [n_tokens] are the reference's to rounding."""
    if engine.tier == "avx512_bf16" and engine.weights == "bf16" and found.size > 0:
        by_token = np.abs(found - expected).reshape(len(found), -1).max(axis=1)
        typical = float(np.median(by_token)) / max(1.0, float(np.abs(expected).max()))
        return typical < ROUNDED_INPUTS
    return difference(found, expected) < TOLERANCE


def packed_read(checkpoint: Checkpoint, weights: Weights) -> Read:
    """Tensors as the engine holds them: matrices rounded, vectors as they are."""

    def read(name: str) -> npt.NDArray[Any]:
        values = checkpoint.read_f32(name)
        if weights == "bf16" and values.ndim == 2:
            return values.astype(DTYPES["bf16"]).astype(np.float32)
        return values

    return read


def difference(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """The largest difference, in terms of the largest expected value or 1."""
    if found.size == 0 and expected.size == 0:
        return 0.0
    return float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))
