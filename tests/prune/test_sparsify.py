"""Which weights become zero."""

from __future__ import annotations

import numpy as np
import pytest

from reference.models import random_checkpoint, random_config
from slimformer.checkpoint import Checkpoint
from slimformer.errors import ConfigError
from slimformer.prune.sparsify import largest, largest_of_groups, layer_matrices, sparsify


def some_checkpoint(seed: int) -> Checkpoint:
    config = random_config(np.random.default_rng(seed), ragged=False)
    return random_checkpoint(config, seed, dtype="bf16")


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 1.0])
def test_the_smallest_go(sparsity: float) -> None:
    scores = np.abs(np.random.default_rng(1).standard_normal((37, 21)))
    kept = largest(scores, sparsity)
    assert (~kept).sum() == round(sparsity * scores.size)
    if 0 < sparsity < 1:
        assert scores[~kept].max() <= scores[kept].min()


def test_equal_scores_go_in_order() -> None:
    assert largest(np.ones((2, 2)), 0.5).tolist() == [[False, False], [True, True]]


def test_two_of_four() -> None:
    scores = np.array([[1, 4, 2, 3, 9, 9, 9, 9, 5, 6, 7], [0, 0, 0, 0, 1, 2, 3, 4, 3, 2, 1]])
    kept = largest_of_groups(scores, 2, 4)
    assert kept.astype(int).tolist() == [
        [0, 1, 0, 1, 0, 0, 1, 1, 0, 1, 1],
        [0, 0, 1, 1, 0, 0, 1, 1, 1, 1, 0],
    ]


@pytest.mark.parametrize("sparsity", [-0.1, 1.1, float("nan")])
def test_no_share(sparsity: float) -> None:
    checkpoint = some_checkpoint(0)
    with pytest.raises(ConfigError, match="from 0 to 1"):
        sparsify(checkpoint, sparsity)


@pytest.mark.parametrize("pattern", [(0, 4), (5, 4)])
def test_no_pattern(pattern: tuple[int, int]) -> None:
    checkpoint = some_checkpoint(0)
    with pytest.raises(ConfigError, match="keep"):
        sparsify(checkpoint, pattern=pattern)


def test_either_a_share_or_a_pattern() -> None:
    checkpoint = some_checkpoint(0)
    with pytest.raises(ConfigError, match="either"):
        sparsify(checkpoint)
    with pytest.raises(ConfigError, match="either"):
        sparsify(checkpoint, 0.5, pattern=(2, 4))


def test_what_is_kept_stays_as_it_was() -> None:
    checkpoint = some_checkpoint(2)
    sparse = sparsify(checkpoint, 0.5)
    matrices = set(layer_matrices(checkpoint))
    for name, tensor in checkpoint.tensors.items():
        before, after = tensor.read(), sparse.read(name)
        assert after.dtype == before.dtype
        if name in matrices:
            assert (after == 0).sum() >= round(before.size / 2)
            np.testing.assert_array_equal(after[after != 0], before[after != 0])
        else:
            np.testing.assert_array_equal(after, before)


def test_only_matrices_of_the_model() -> None:
    checkpoint = some_checkpoint(0)
    for name in ("final_norm.weight", "no.such.weight"):
        with pytest.raises(ConfigError, match=name):
            sparsify(checkpoint, 0.5, names=[name])
