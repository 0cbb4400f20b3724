"""``slimformer lm-eval`` hands its options on."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import pytest

Run = Callable[..., Any]
HARNESS = "slimformer.evaluate.harness"


@pytest.mark.parametrize(
    ("given", "handed_on"),
    [
        (("--tasks", "x", "-b", "2"), ["--tasks", "x", "-b", "2", "--model", "slimformer"]),
        (("run", "--tasks=x"), ["run", "--tasks=x", "--model", "slimformer"]),
        (("--model", "hf", "--tasks", "x"), ["--model", "hf", "--tasks", "x"]),
        (("--model=hf",), ["--model=hf"]),
        (("ls", "tasks"), ["ls", "tasks"]),
        ((), []),
    ],
)
def test_options_are_the_harness_s_own(
    run: Run, monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...], handed_on: list[str]
) -> None:
    seen: list[list[str]] = []
    harness = types.ModuleType(HARNESS)
    harness.__dict__.update(NAME="slimformer", cli_evaluate=lambda: seen.append(sys.argv))
    monkeypatch.setitem(sys.modules, HARNESS, harness)
    monkeypatch.setattr("slimformer.evaluate.harness", harness, raising=False)
    monkeypatch.setattr(sys, "argv", ["slimformer"])
    result = run("lm-eval", *given)
    assert result.exit_code == 0, result.stderr
    assert seen == [["lm_eval", *handed_on]]


def test_without_the_harness_it_says_how_to_get_it(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, HARNESS, raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", None)
    result = run("lm-eval", "--tasks", "x")
    assert result.exit_code == 1
    assert "pip install 'slimformer[eval]'" in result.stderr
