from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given

from prune.cases import random_model, seeds
from prune.test_allocate import uniform_model
from slimformer.config import LayerConfig, LinkConfig
from slimformer.errors import FormatError
from slimformer.prune.latency import (
    ATTEMPTS,
    TIMINGS,
    TOLERANCE,
    Curve,
    LatencyTable,
    dense_time,
    hit,
    time_budget,
)

TABLE = LatencyTable(
    1000.0, Curve((64, 128, 192), (200.0, 300.0, 400.0)), Curve((80, 320), (100.0, 580.0))
)


def test_a_curve_is_straight_between_and_beyond_its_points() -> None:
    curve = Curve((10, 20, 40), (5.0, 10.0, 30.0))
    assert [curve.at(width) for width in (10, 15, 20, 30, 40)] == [5, 7.5, 10, 20, 30]
    assert (curve.at(50), curve.at(5), curve.at(-10)) == (40, 2.5, 0)


def test_less_work_never_takes_longer() -> None:
    curve = Curve((10, 20, 30), (5.0, 9.0, 8.0))
    times = [curve.at(width) for width in range(10, 31)]
    assert times == sorted(times)


@pytest.mark.parametrize(
    ("widths", "times"),
    [((1,), (1.0,)), ((1, 1), (1.0, 2.0)), ((1, 2), (1.0,)), ((1, 2), (1.0, float("nan")))],
)
def test_points_that_are_no_curve(widths: tuple[int, ...], times: tuple[float, ...]) -> None:
    with pytest.raises(FormatError, match="latency"):
        Curve(widths, times)


def test_a_table_survives_json() -> None:
    stored = json.loads(json.dumps(dataclasses.asdict(TABLE)))
    assert LatencyTable.from_dict(stored) == TABLE
    broken: list[object] = [[], {}, {**stored, "fixed": "fast"}, {**stored, "ffn": {"widths": 3}}]
    for damaged in broken:
        with pytest.raises(FormatError, match="latency"):
            LatencyTable.from_dict(damaged)


def test_layers_take_what_the_table_says() -> None:
    config = uniform_model(layers=3).config  # 6 heads on 3 KV heads of 8, 320 neurons
    price = TABLE.price(config, 1)
    # Rows of q, k and v and columns of o: 16 for each head.
    assert price.of(6, 3, 320, attention=True, ffn=True) == 325 + 580
    assert price.of(0, 0, 200, attention=False, ffn=True) == 340
    assert price.of(5, 3, 0, attention=True, ffn=False) == 300
    assert price.neuron == 2
    assert dense_time(TABLE, config) == 1000 + 3 * price.of(6, 3, 320, attention=True, ffn=True)


def test_a_link_takes_what_as_many_weights_of_an_ffn_take() -> None:
    config = uniform_model(layers=2).config
    layer = LayerConfig(LinkConfig("full"), None)
    linked = dataclasses.replace(config, layers=(layer, *config.layers[1:]))
    price = TABLE.price(linked, 0)
    # 48 x 48 weights are those of 16 neurons, and 320 neurons take 580.
    assert price.of(0, 0, 0, attention=True, ffn=False) == 29
    assert price.of(0, 0, 0, attention=False, ffn=False) == 0


@given(seeds)
def test_any_model_has_a_time(seed: int) -> None:
    model = random_model(np.random.default_rng(seed))
    assert dense_time(TABLE, model.config) >= TABLE.fixed


def test_a_budget_of_time_says_milliseconds() -> None:
    budget = time_budget(TABLE, 2e6, "speedup 1.5")
    assert budget.describe(1_234_567) == "1.235 ms"


def test_the_limit_moves_until_the_time_is_hit() -> None:
    """A table that is 20 % wrong, and a part that it does not know of."""
    tried: list[float] = []

    def choose(limit: float) -> float:
        tried.append(limit)
        return limit

    choice, missed = hit(100.0, choose, lambda limit: 1.2 * limit + 10)
    assert tried[0] == 100
    assert len(tried) <= 3
    assert abs(missed - 1) <= TOLERANCE
    assert missed == pytest.approx((1.2 * choice + 10) / 100)


def test_the_closest_choice_is_taken_where_none_hits() -> None:
    steps: list[float] = []

    def measure(limit: float) -> float:
        steps.append(limit)
        return 90.0 if limit <= 100 else 120.0

    choice, missed = hit(100.0, lambda limit: limit, measure)
    assert len(steps) == ATTEMPTS
    assert (choice, missed) == (100.0, 0.9)


def test_a_choice_that_was_only_lucky_is_not_taken() -> None:
    """What takes twice the time wanted seems to take half of that the first time."""
    timed: list[float] = []

    def measure(choice: float) -> float:
        timed.append(choice)
        return 100.0 if len(timed) == 1 else choice

    choice, missed = hit(100.0, lambda limit: 2 * limit, measure)
    assert timed == [200.0] * 2 + [pytest.approx(200 / 1.5)] + [pytest.approx(100)] * TIMINGS
    assert choice == pytest.approx(100)
    assert missed == pytest.approx(1)
