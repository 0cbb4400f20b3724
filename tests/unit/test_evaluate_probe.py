"""The generative probe."""

from __future__ import annotations

from typing import Any

import pytest

from prune.test_allocate import uniform_model
from slimformer.engine import Engine
from slimformer.errors import ConfigError
from slimformer.evaluate import probe_generation
from slimformer.evaluate.probe import PROMPTS


class Parrot:
    """Stands in for an engine that gives one answer to everything."""

    def __init__(self, answer: str) -> None:
        self.answer = answer

    def generate(self, prompt: str, **options: Any) -> str:
        return self.answer


def test_repetition_and_variety_are_told_apart() -> None:
    stuck = probe_generation(Parrot("no no no no no no no no"), prompts=["a"])  # type: ignore[arg-type]
    assert stuck.repetition == pytest.approx(4 / 5)
    assert stuck.distinct == pytest.approx((1 / 8, 1 / 7, 1 / 6))
    varied = probe_generation(Parrot("one two three four five"), prompts=["a", "b"])  # type: ignore[arg-type]
    assert varied.repetition == 0
    assert varied.distinct == (0.5, 0.5, 0.5)
    silent = probe_generation(Parrot(""), prompts=["a"])  # type: ignore[arg-type]
    assert silent.distinct == (0, 0, 0)


def test_a_model_answers_every_prompt_in_the_same_way_again() -> None:
    engine = Engine(uniform_model(layers=2), threads=1)
    told: list[tuple[str, int, int]] = []
    found = probe_generation(engine, max_tokens=4, progress=lambda *step: told.append(step))
    assert len(found.answers) == len(PROMPTS) == 12
    assert found == probe_generation(engine, max_tokens=4)
    assert told[-1] == ("answer prompts", 12, 12)


def test_no_prompts_are_refused() -> None:
    with pytest.raises(ConfigError, match="prompts"):
        probe_generation(Engine(uniform_model(layers=1), threads=1), prompts=[])
