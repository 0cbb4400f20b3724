"""``slimformer prune`` with zeros and with mixes."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slimformer.checkpoint import load
from slimformer.checkpoint.sparse_file import FILE
from slimformer.prune.mixes import Mix, Point
from slimformer.prune.zeros.choice import layer_sizes

Run = Callable[..., Any]


def test_structure_and_zeros_in_one_command(
    run: Run, run_json: Run, dense: Path, text: Path, tmp_path: Path
) -> None:
    options = ("--calibration", text, "--sparsity", 0.5)
    seen = run_json("prune", dense, tmp_path / "slim", "--keep", 0.8, *options)
    assert seen["zeros"] == pytest.approx(0.5, abs=0.01)
    assert seen["recipe"]["zeros"]["method"] == "sparsegpt"
    slim = load(tmp_path / "slim")
    assert slim.sparse
    assert slim.config.non_embedding_parameters() < load(dense).config.non_embedding_parameters()
    zeros = sum(int((slim.read(name) == 0).sum()) for name in layer_sizes(slim.config))
    assert zeros / sum(layer_sizes(slim.config).values()) == pytest.approx(0.5, abs=0.02)
    assert run_json("inspect", tmp_path / "slim")["zeros"] == pytest.approx(0.5, abs=0.01)
    assert "of the layers' matrices are zero" in run("inspect", tmp_path / "slim").stdout
    title = json.loads((tmp_path / "slim" / "results.json").read_text())["title"]
    assert title.endswith("50 % of its layers zero")
    people = run("prune", dense, tmp_path / "other", *options, "--zeros", "wanda")
    assert people.exit_code == 0
    assert "zeros: 50.0% of the layers' matrices, by wanda, pattern any" in people.stdout
    again = run_json(
        *("prune", dense, tmp_path / "again", "--calibration", text),
        *("--recipe", tmp_path / "slim" / "recipe.json"),
    )
    assert again["recipe"] == seen["recipe"]
    assert (tmp_path / "again" / FILE).read_bytes() == (tmp_path / "slim" / FILE).read_bytes()


def test_zeros_as_plain_numbers(run_json: Run, dense: Path, text: Path, tmp_path: Path) -> None:
    run_json(
        *("prune", dense, tmp_path / "slim", "--calibration", text, "--pattern", "2:4", "--dense")
    )
    slim = load(tmp_path / "slim")
    assert not slim.sparse
    assert (tmp_path / "slim" / "model.safetensors").exists()
    matrix = slim.read("layers.0.ffn.up.weight")
    assert ((matrix.reshape(len(matrix), -1, 4) == 0).sum(axis=-1) == 2).all()


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> tuple[Point, ...]:
    """A table in which zeros are a bargain."""
    table = (
        Point(Mix(1.0, 0.0, "bf16"), 0.0, 1.0),
        Point(Mix(0.5, 0.0, "bf16"), 1.0, 1.5),
        Point(Mix(1.0, 0.5, "int8"), 0.1, 2.0),
        Point(Mix(0.5, 0.5, "int8"), 1.2, 3.0),
    )
    module = importlib.import_module("slimformer.prune.mixes")
    monkeypatch.setattr(module, "measured_points", lambda: table)
    return table


@pytest.mark.usefixtures("points")
def test_a_mix_is_chosen(run: Run, run_json: Run, dense: Path, text: Path, tmp_path: Path) -> None:
    options = ("--calibration", text, "--mix", "auto")
    seen = run_json("prune", dense, tmp_path / "fast", *options, "--speedup", 2)
    assert seen["mix"] == {"keep": 1.0, "sparsity": 0.5, "weights": "int8"}
    assert seen["speedup"] > 0
    assert seen["zeros"] == pytest.approx(0.5, abs=0.01)
    assert load(tmp_path / "fast").config == load(dense).config
    people = run("prune", dense, tmp_path / "small", *options, "--speedup", 2.5)
    assert people.exit_code == 0, people.stderr
    assert "mix: 75% kept, 50% of it zero, int8; run it with --weights int8" in people.stdout
    small = load(tmp_path / "small").config
    assert small.non_embedding_parameters() < load(dense).config.non_embedding_parameters()


@pytest.mark.usefixtures("points")
@pytest.mark.parametrize(
    "options",
    [
        ("--keep", 0.8),
        ("--speedup", 2, "--sparsity", 0.5),
        ("--decode-tokens-per-second", 10),
        ("--speedup", 2, "--max-bytes", "1MB"),
    ],
)
def test_a_mix_goes_with_nothing_else(
    run: Run, dense: Path, tmp_path: Path, options: tuple[object, ...]
) -> None:
    result = run("prune", dense, tmp_path / "out", "--mix", "auto", *options)
    assert result.exit_code == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("points")
def test_a_mix_that_is_not_in_the_table(run: Run, dense: Path, tmp_path: Path) -> None:
    result = run("prune", dense, tmp_path / "out", "--mix", "auto", "--speedup", 50)
    assert result.exit_code == 1
    assert "the fastest mix in the table" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--sparsity", 1.0), "sparsity: expected a share above 0"),
        (("--pattern", "4:2"), "pattern: expected any, N:M"),
        (("--pattern", "1x16"), "expected a sparsity beside it"),
    ],
)
def test_zeros_that_cannot_be(
    run: Run, dense: Path, tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    result = run("prune", dense, tmp_path / "out", *options)
    assert result.exit_code == 1
    assert message in result.stderr


def test_a_half_is_half(run_json: Run, dense: Path, tmp_path: Path) -> None:
    run_json(
        *("prune", dense, tmp_path / "out", "--sparsity", 0.5, "--zeros", "magnitude"),
        *("--sharing", "even", "--repair", "none"),
    )
    slim = load(tmp_path / "out")
    for name, size in layer_sizes(slim.config).items():
        assert np.count_nonzero(slim.read(name)) == size - round(size / 2)
