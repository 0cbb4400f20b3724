from __future__ import annotations

from typing import Literal

import pytest

from prune.test_allocate import kept_share, uniform_model
from prune.test_pipeline import TEXT
from slimformer.errors import ConfigError
from slimformer.prune import apply, plan, prune
from slimformer.prune.effort import EFFORTS, work


@pytest.mark.parametrize("effort", EFFORTS)
def test_every_effort_meets_its_budget(effort: Literal["fast", "balanced", "thorough"]) -> None:
    model = uniform_model(layers=3, neurons=160)
    recipe = plan(model, keep=0.7, criterion="loss", effort=effort, calibration=TEXT)
    assert 0.69 < kept_share(model, recipe) <= 0.7
    slim = prune(model, recipe, effort=effort, calibration=TEXT)
    assert slim.recipe == recipe.to_dict()
    stored = plan(
        model,
        max_bytes=int(0.8 * model.nbytes),
        criterion="loss",
        effort=effort,
        calibration=TEXT,
    )
    assert apply(model, stored).nbytes <= 0.8 * model.nbytes


def test_more_effort_is_more_work() -> None:
    costs = [(work(one).plan_tokens, work(one).repair_tokens) for one in EFFORTS]
    assert all(sorted(column) == list(column) for column in zip(*costs, strict=True))
    with pytest.raises(ConfigError, match="effort"):
        plan(uniform_model(), keep=0.5, effort="heroic")  # type: ignore[arg-type]
