"""``prune --nested``: one folder that every command opens at several widths."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slimformer.checkpoint import load, widths
from slimformer.engine import Engine

Run = Callable[..., Any]

METHOD = ("--criterion", "magnitude", "--protect", "none", "--threads", 1)


def test_one_folder_of_three_widths(
    run: Run, run_json: Run, dense: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m"
    options = ("--keep", 0.9, "--nested", "0.8,0.7", "--calibration", text, *METHOD)
    found = run_json("prune", dense, out, *options)["widths"]
    assert [row["width"] for row in found] == [0.9, 0.8, 0.7] == list(widths(out))
    before = load(dense).config.non_embedding_parameters()
    for row in found:
        assert row["model"] == f"{out}@{row['width']}"
        assert row["non_embedding_parameters"] <= row["width"] * before
        seen = run_json("inspect", row["model"])
        assert seen["parameters"] == row["parameters"]
    assert found[0]["own_bytes"] == found[0]["bytes"]
    assert 0 < found[1]["own_bytes"] < found[1]["bytes"] / 2
    written = run_json("generate", f"{out}@0.7", "-p", "the river", "--max-tokens", 8)["text"]
    assert written == Engine(out, width=0.7).generate("the river", max_tokens=8)
    timing = ("--prompt", 8, "--generate", 2, "--repeat", 1, "--threads", 1)
    timed = run_json("bench", out, f"{out}@0.7", *timing)["results"]
    assert timed[1]["weight_bytes"] < timed[0]["weight_bytes"]
    assert run_json("inspect", out)["widths"] == [0.9, 0.8, 0.7]
    people = run("inspect", out)
    assert "m@0.8" in people.stdout.replace("\n", "")
    unknown = run("generate", f"{out}@0.5", "-p", "the")
    assert unknown.exit_code == 1
    assert "0.9, 0.8, 0.7, found 0.5" in unknown.stderr
    assert run("report", out).exit_code == 0
    told = run("prune", dense, out, *options, "--repair", "none")
    assert told.exit_code == 0
    assert "0.0 MB" in told.stdout


@pytest.mark.parametrize(
    "options",
    [
        ("--nested", "0.8"),
        ("--nested", "0.95", "--keep", 0.9),
        ("--nested", "a", "--keep", 0.9),
        ("--nested", "0.8", "--keep", 0.9, "--sparsity", 0.5),
        ("--nested", "0.8", "--keep", 0.9, "--channels", 24),
    ],
)
def test_what_does_not_go_with_it(options: tuple[object, ...], run: Run, dense: Path) -> None:
    result = run("prune", dense, "nowhere", *options)
    assert result.exit_code == 2
    assert not Path("nowhere").exists()
