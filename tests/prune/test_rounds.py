from __future__ import annotations

from typing import Literal

import pytest

from prune.test_allocate import kept_share, uniform_model
from prune.test_pipeline import TEXT
from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.errors import ConfigError
from slimformer.prune import Recipe, apply, plan, prune
from slimformer.prune.budget import Budget, keep_budget
from slimformer.prune.effort import EFFORTS, work
from slimformer.prune.rounds import in_rounds


def test_rounds_remove_equal_weights_from_what_is_left() -> None:
    model = uniform_model(layers=4, neurons=320)
    seen: list[tuple[float, float]] = []

    def choose(current: Checkpoint, made_by: Recipe, budget: Budget) -> Recipe:
        assert current.config == apply(model, made_by).config
        total = model.config.non_embedding_parameters()
        seen.append((current.config.non_embedding_parameters() / total, budget.limit / total))
        keep = budget.limit / current.config.non_embedding_parameters()
        return plan(current, keep=keep, structures=("neurons",), criterion="magnitude")

    budget = keep_budget(model, 0.7)
    recipe = in_rounds(
        model, budget, lambda _: budget.rate, 3, choose, lambda made: apply(model, made)
    )
    starts, limits = zip(*seen, strict=True)
    assert starts == pytest.approx((1, 0.9, 0.8), abs=0.01)
    assert limits == pytest.approx((0.9, 0.8, 0.7))
    assert 0.69 < kept_share(model, recipe) <= 0.7
    recipe.check(model)


@pytest.mark.parametrize("effort", EFFORTS)
def test_every_effort_meets_its_budget(effort: Literal["fast", "balanced", "thorough"]) -> None:
    model = uniform_model(layers=3, neurons=160)
    structures = ("kv_groups", "neurons")
    recipe = plan(
        model, keep=0.7, criterion="loss", structures=structures, effort=effort, calibration=TEXT
    )
    assert 0.69 < kept_share(model, recipe) <= 0.7
    slim = prune(model, recipe, effort=effort, calibration=TEXT)
    assert slim.recipe == recipe.to_dict()
    stored = plan(
        model,
        max_bytes=int(0.8 * model.nbytes),
        criterion="loss",
        structures=structures,
        effort=effort,
        calibration=TEXT,
    )
    assert apply(model, stored).nbytes <= 0.8 * model.nbytes


def test_more_effort_is_more_work() -> None:
    costs = [(work(one).rounds, work(one).plan_tokens, work(one).repair_tokens) for one in EFFORTS]
    assert all(sorted(column) == list(column) for column in zip(*costs, strict=True))
    with pytest.raises(ConfigError, match="effort"):
        plan(uniform_model(), keep=0.5, effort="heroic")  # type: ignore[arg-type]
