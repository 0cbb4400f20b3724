"""A model kept without its zeros gives what it gives with them, and takes fewer bytes."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from reference.models import random_checkpoint
from slimformer import _kernels as kernels
from slimformer.checkpoint import Checkpoint
from slimformer.config import AttentionConfig, FfnConfig, LayerConfig, ModelConfig, RopeConfig
from slimformer.engine import Engine, Mask, Weights
from slimformer.errors import ConfigError
from slimformer.prune.sparsify import sparsify


def ragged(sparsity: float) -> Checkpoint:
    """A model of odd widths whose matrices all have zeros."""
    wide = AttentionConfig(4, 2, 32, 32, (0, 0, 1, 1), 0.2, RopeConfig(32))
    narrow = AttentionConfig(3, 3, 32, 32, (0, 1, 2), 0.2, RopeConfig(32))
    layers = (LayerConfig(wide, FfnConfig(333)), LayerConfig(narrow, FfnConfig(97)))
    config = ModelConfig("llama", 500, 128, 128, 1e-5, True, 600, layers)
    checkpoint = random_checkpoint(config, 5, dtype="bf16")
    matrices = [name for name, shape in config.tensor_shapes().items() if len(shape) == 2]
    return sparsify(checkpoint, sparsity, names=matrices)


def test_bf16_gives_the_same_bits() -> None:
    checkpoint = ragged(0.6)
    tokens = np.random.default_rng(0).integers(0, 500, 250)
    for tier in kernels.tiers():
        dense, sparse = (
            Engine(checkpoint, weights="bf16", sparse=kind, tier=tier, threads=2)
            for kind in ("never", "smaller")
        )
        assert sparse.weight_bytes < 0.55 * dense.weight_bytes
        for mask in (None, Mask.skip_layers([0]), Mask(heads={0: (0, 2)}, neurons={1: (3, 96)})):
            before, after = dense.session(mask), sparse.session(mask)
            for piece in (tokens[:230], tokens[230:234], tokens[234:235]):
                np.testing.assert_array_equal(before.extend(piece), after.extend(piece))


def test_int8_is_close() -> None:
    """Sparse groups are rounded as they are, dense ones rotated: both lose about a per cent."""
    checkpoint = ragged(0.6)
    tokens = np.random.default_rng(1).integers(0, 500, 100)
    exact = Engine(checkpoint, weights="f32").session().extend(tokens)
    dense, sparse = (
        Engine(checkpoint, weights="int8", sparse=kind) for kind in ("never", "smaller")
    )
    assert sparse.weight_bytes < 0.65 * dense.weight_bytes
    for engine in (dense, sparse):
        error = np.abs(engine.session().extend(tokens) - exact)
        assert error.max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize("weights", get_args(Weights))
def test_dense_models_stay_dense(weights: Weights) -> None:
    checkpoint = ragged(0.05)
    dense, chosen = (Engine(checkpoint, weights=weights, sparse=kind) for kind in ("never", "auto"))
    assert chosen.weight_bytes == dense.weight_bytes


def test_the_choice_is_checked() -> None:
    with pytest.raises(ConfigError, match="sparse: expected one of auto, never, smaller"):
        Engine(ragged(0.0), sparse="always")  # type: ignore[arg-type]
