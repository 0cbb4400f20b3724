"""Budgets of time, with a clock that counts weights instead of seconds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from prune.cases import routed_model
from prune.test_allocate import uniform_model
from prune.test_pipeline import TEXT
from reference.models import random_checkpoint
from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.config import FfnConfig, LayerConfig, RoutedFfnConfig
from slimformer.engine import Engine
from slimformer.errors import BudgetError, ConfigError
from slimformer.prune import Recipe, apply, explicit, plan, timing
from slimformer.prune.latency import dense_time
from slimformer.prune.timing import Setting, latency_table

HEAD = 50_000
"""What the clock takes for all but the layers."""


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each weight of a layer takes a nanosecond, each layer 500 more that no table knows of."""

    def seconds(self: Setting, engine: Engine) -> float:
        return 1e-9 * time_of(engine)

    monkeypatch.setattr(Setting, "seconds", seconds)
    monkeypatch.setenv("SLIMFORMER_CACHE", str(tmp_path))


def time_of(engine: Engine) -> float:
    return HEAD + engine.config.non_embedding_parameters() + 500 * len(engine.config.layers)


def time_with(model: Checkpoint, recipe: Recipe) -> float:
    return time_of(Engine(apply(model, recipe)))


def test_the_table_adds_up_to_the_model() -> None:
    model = uniform_model(layers=4)
    table = latency_table(model, Setting())
    assert dense_time(table, model.config) == pytest.approx(time_of(Engine(model)), rel=1e-3)
    price = table.price(model.config, 0)
    assert price.neuron == pytest.approx(3 * 48, rel=1e-3)


def test_a_table_is_measured_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = uniform_model(layers=2)
    first = latency_table(model, Setting())
    (file,) = tmp_path.rglob("*.json")
    with monkeypatch.context() as patch:
        patch.setattr(timing, "_measure", pytest.fail)
        assert latency_table(model, Setting()) == first
    latency_table(model, Setting(weights="int8"))
    assert len(list(tmp_path.rglob("*.json"))) == 2
    file.write_text("{", encoding="utf-8")
    assert latency_table(model, Setting()) == first


def test_a_place_that_cannot_be_written_is_no_obstacle(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SLIMFORMER_CACHE", str(tmp_path / "file" / "cache"))
    assert latency_table(uniform_model(layers=2), Setting()).fixed > 0


@pytest.mark.parametrize("structures", [("neurons",), ("kv_groups", "neurons")])
@pytest.mark.parametrize("speedup", [1.1, 1.4])
def test_a_speedup_is_hit(structures: tuple[str, ...], speedup: float) -> None:
    model = uniform_model()
    recipe = plan(model, speedup=speedup, structures=structures, criterion="magnitude")
    assert time_of(Engine(model)) / time_with(model, recipe) == pytest.approx(speedup, rel=0.03)


def test_tokens_a_second_are_hit() -> None:
    model = uniform_model()
    wanted = 1.3e9 / time_of(Engine(model))
    recipe = plan(model, decode_tokens_per_second=wanted, calibration=TEXT)
    assert 1e9 / time_with(model, recipe) == pytest.approx(wanted, rel=0.03)
    slow = plan(model, decode_tokens_per_second=wanted / 2, calibration=TEXT)
    assert slow == Recipe.identity(model)


def widths_of(engine: Engine) -> list[tuple[int, ...]]:
    """Neurons of the experts of each routed FFN."""
    ffns = [layer.ffn for layer in engine.config.layers]
    return [ffn.experts for ffn in ffns if isinstance(ffn, RoutedFfnConfig)]


def test_experts_take_as_long_as_those_that_a_token_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = routed_model(layers=3)

    def time_of(engine: Engine) -> float:
        mean = [sum(widths) / len(widths) for widths in widths_of(engine)]
        return HEAD + 10_000 * len(engine.config.layers) + 2 * 3 * 32 * sum(mean)

    monkeypatch.setattr(Setting, "seconds", lambda self, engine: 1e-9 * time_of(engine))
    table = latency_table(model, Setting())
    assert dense_time(table, model.config) == pytest.approx(time_of(Engine(model)), rel=0.02)
    recipe = plan(model, speedup=1.1, calibration=TEXT, tokens=600)
    slim = Engine(apply(model, recipe))
    assert time_of(Engine(model)) / time_of(slim) == pytest.approx(1.1, rel=0.03)
    assert [len(widths) for widths in widths_of(slim)] == [6, 6, 6]
    mixed = (*model.config.layers, LayerConfig(None, FfnConfig(5)))
    both = random_checkpoint(dataclasses.replace(model.config, layers=mixed), 1)
    with pytest.raises(ConfigError, match="in all of its FFNs or in none"):
        latency_table(both, Setting())


def test_what_time_cannot_be_had_is_told() -> None:
    model = uniform_model()
    with pytest.raises(BudgetError, match=r"speedup 9: cannot be met .* possible is 0\.\d+ ms"):
        plan(model, speedup=9, criterion="magnitude")
    with pytest.raises(BudgetError, match="the closest choice of layers"):
        plan(model, speedup=1.04, structures=("layers",), criterion="magnitude")
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(BudgetError, match="above 0"):
            plan(model, speedup=wrong, criterion="magnitude")
    with pytest.raises(ConfigError, match="phase"):
        plan(model, speedup=1.5, phase="sleep", criterion="magnitude")  # type: ignore[arg-type]
    without = apply(model, explicit(model, drop_ffn=range(6)))
    with pytest.raises(ConfigError, match="no neurons"):
        plan(without, speedup=1.1, structures=("kv_groups",), criterion="magnitude")
