"""Which mix of structure, zeros and bits meets a budget."""

from __future__ import annotations

import numpy as np
import pytest

from reference.models import random_checkpoint, random_config
from slimformer.config import AttentionConfig, FfnConfig, LayerConfig, ModelConfig, RopeConfig
from slimformer.engine import Engine
from slimformer.errors import BudgetError, FormatError
from slimformer.prune.mixes import (
    Mix,
    Point,
    choose_mix,
    measured_points,
    mixed_bytes,
    read_points,
)
from slimformer.prune.sparsify import layer_matrices, sparsify

POINTS = (
    Point(Mix(1.0, 0.0, "bf16"), 0.0, 1.0),
    Point(Mix(0.5, 0.0, "bf16"), 1.0, 1.6),
    Point(Mix(1.0, 0.5, "bf16"), 0.4, 1.5),
    Point(Mix(0.5, 0.5, "bf16"), 1.4, 2.4),
    Point(Mix(1.0, 0.0, "int8"), 0.01, 2.0),
    Point(Mix(0.5, 0.0, "int8"), 1.01, 3.2),
)


def shape() -> ModelConfig:
    attention = AttentionConfig(4, 2, 32, 32, (0, 0, 1, 1), 0.2, RopeConfig(32))
    layers = (LayerConfig(attention, FfnConfig(512)),) * 2
    return ModelConfig("llama", 300, 256, 256, 1e-5, True, 600, layers)


@pytest.mark.parametrize("mix", [point.mix for point in POINTS if point.mix.keep == 1])
def test_bytes_are_about_those_of_the_engine(mix: Mix) -> None:
    checkpoint = random_checkpoint(shape(), 0, dtype="bf16")
    if mix.sparsity:
        checkpoint = sparsify(checkpoint, mix.sparsity, names=layer_matrices(checkpoint))
    found = Engine(checkpoint, weights=mix.weights, sparse="smaller").weight_bytes
    assert mixed_bytes(shape(), mix) == pytest.approx(found, rel=0.03)


def test_the_mix_that_loses_least() -> None:
    config = shape()
    whole = mixed_bytes(config, POINTS[0].mix)
    assert choose_mix(config, POINTS, max_bytes=int(whole) + 1) == POINTS[0]
    assert choose_mix(config, POINTS, max_bytes=int(0.6 * whole)).mix == POINTS[4].mix
    found = choose_mix(config, POINTS, max_bytes=int(0.4 * whole))
    assert found.mix.weights == "int8"
    assert 0.5 < found.mix.keep < 1
    assert mixed_bytes(config, found.mix) == pytest.approx(0.4 * whole, rel=1e-4)
    assert found.nats == pytest.approx(0.01 + 2 * (1 - found.mix.keep))


def test_a_speed_is_met() -> None:
    assert choose_mix(shape(), POINTS, speedup=1.9) == POINTS[4]
    found = choose_mix(shape(), POINTS, speedup=2.6)
    assert found.decode == pytest.approx(2.6)
    assert found.mix.weights == "int8"
    assert choose_mix(shape(), POINTS[:4], speedup=1.5) == POINTS[2]


def test_budgets_beyond_the_table() -> None:
    with pytest.raises(BudgetError, match="the smallest mix in the table takes"):
        choose_mix(shape(), POINTS, max_bytes=1000)
    with pytest.raises(BudgetError, match=r"the fastest mix in the table is 3\.20 times"):
        choose_mix(shape(), POINTS, speedup=9.0)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"points": []}', '{"points": [{"keep": 1}]}'])
def test_no_table(text: str) -> None:
    with pytest.raises(FormatError, match=r"mixes\.json"):
        read_points(text)


def test_unknown_weights() -> None:
    one = '{"keep": 1, "sparsity": 0, "weights": "int3", "nats": 0, "decode": 1}'
    with pytest.raises(FormatError, match="weights"):
        read_points(f'{{"points": [{one}]}}')


def test_the_table_of_the_package_answers() -> None:
    points = measured_points()
    config = random_config(np.random.default_rng(0), ragged=False)
    dense = next(one for one in points if one.mix == Mix(1.0, 0.0, "bf16"))
    assert (dense.nats, dense.decode) == (0.0, 1.0)
    assert choose_mix(config, points, speedup=1.0).nats <= 0.0
