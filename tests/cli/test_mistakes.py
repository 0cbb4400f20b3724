"""What the command line says when something is wrong: one line, and an exit status."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from slimformer.cli import options
from slimformer.cli.console import finite

Run = Callable[..., Any]
PROGRAM = [sys.executable, "-m", "slimformer"]


def assert_failed(result: Any, *parts: str) -> None:
    assert result.exit_code == 1
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert lines[-1].startswith("error: ")
    for part in parts:
        assert part in lines[-1]
    assert "Traceback" not in result.stderr


def test_a_model_that_is_not_there(run: Run, tmp_path: Path) -> None:
    missing = tmp_path / "missing.gguf"
    for command in (("inspect", missing), ("generate", missing, "-p", "x"), ("bench", missing)):
        assert_failed(run(*command, "--json"), "missing.gguf")


def test_a_model_file_that_is_none(run: Run, tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\xff" * 64)
    assert_failed(run("inspect", tmp_path / "broken.gguf"), "broken.gguf")


def test_links_do_not_stand_in_for_neurons(run: Run, dense: Path, tmp_path: Path) -> None:
    result = run("prune", dense, tmp_path / "out", "--keep", 0.5, "--links")
    assert_failed(result, "links", "layers, attention, ffn")


def test_peers_read_nothing_but_gguf(run: Run, dense: Path) -> None:
    assert_failed(run("bench", dense, "--peers", "--json"), "--peers", "GGUF")


def test_text_and_tasks_that_cannot_be_used(run: Run, dense: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    assert_failed(run("evaluate", dense, "--text", tmp_path / "empty.txt"), "empty.txt")
    assert_failed(run("evaluate", dense, "--text", tmp_path / "none.txt"), "none.txt")
    (tmp_path / "bad.jsonl").write_text('{"context": 1}\n')
    assert_failed(run("evaluate", dense, "--tasks", tmp_path / "bad.jsonl"), "bad.jsonl:1")


def test_outputs_that_cannot_be_written_are_refused_first(
    run: Run, dense: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    full = tmp_path / "full"
    full.mkdir()
    (full / "letter.txt").write_text("mine")
    for output in (tmp_path / "file", full, tmp_path / "file" / "below"):
        # The model does not exist, so the folder was looked at before.
        result = run("prune", "missing-model", output, "--keep", 0.5)
        assert_failed(result, str(tmp_path))
        assert "missing-model" not in result.stderr
    assert (full / "letter.txt").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(run: Run, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    assert_failed(run("prune", "missing-model", closed / "out", "--keep", 0.5), "permission")


def test_a_full_disk_is_seen_before_the_work(
    run: Run, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=1000))
    assert_failed(run("prune", dense, tmp_path / "out", "--keep", 0.5), "are free")


def test_a_recipe_of_another_model(run: Run, dense: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    assert run("prune", dense, first, "--drop-layers", 1, "--repair", "none").exit_code == 0
    result = run("prune", first, tmp_path / "second", "--recipe", first / "recipe.json")
    assert_failed(result, "recipe")
    assert not (tmp_path / "second").exists()
    assert_failed(run("prune", dense, tmp_path / "x", "--recipe", tmp_path / "none"), "none")


def test_an_impossible_budget(run: Run, dense: Path, text: Path, tmp_path: Path) -> None:
    result = run("prune", dense, tmp_path / "out", "--max-bytes", "1KB", "--calibration", text)
    assert_failed(result)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("unknown",),
        ("generate", "model"),
        ("generate", "model", "-p", "x", "--max-tokens", "0"),
        ("generate", "model", "-p", "x", "--skip-layers", "a"),
        ("evaluate", "model"),
        ("evaluate", "--text", "x"),
        ("evaluate", "a.jsonl", "--text", "x"),
        ("prune", "model", "out"),
        ("prune", "model", "out", "--keep", "1.5"),
        ("prune", "model", "out", "--keep", "0.5", "--max-bytes", "1MB"),
        ("prune", "model", "out", "--keep", "0.5", "--speedup", "1.5"),
        ("prune", "model", "out", "--speedup", "0.5"),
        ("prune", "model", "out", "--max-bytes", "much"),
        ("prune", "model", "out", "--heads", "4"),
        ("prune", "model", "out", "--vocabulary", "500"),
        ("prune", "model", "out", "--keep", "0.5", "--vocabulary-keep", "0.9"),
        ("prune", "model", "out", "--recipe", "r.json", "--vocabulary-from", "t.txt"),
        ("prune", "model", "out", "--keep", "0.5", "--vocabulary-language", "en"),
        ("prune", "model", "out", "--keep", "0.5", "--rotate"),
        ("prune", "model", "out", "--channels", "0"),
        ("bench", "model", "--weights", "f64"),
        ("bench", "model", "--threads", "-1"),
    ],
)
def test_wrong_usage(run: Run, arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_ctrl_c_ends_it_cleanly(dense: Path, tmp_path: Path) -> None:
    long = tmp_path / "long.txt"
    long.write_text("the river of stone and light " * 200_000)
    with subprocess.Popen(
        [*PROGRAM, "evaluate", str(dense), "--text", str(long), "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert "perplexity" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        output, errors = process.communicate(timeout=30)
    assert time.monotonic() - start < 10
    assert process.returncode == 130
    assert output == ""
    assert errors.endswith("interrupted\n")
    assert "Traceback" not in errors


def test_a_reader_that_leaves_is_no_error(dense: Path) -> None:
    with subprocess.Popen(
        [*PROGRAM, "generate", str(dense), "-p", "the", "--max-tokens", "200"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()
    assert errors == b""


def test_help_does_not_wait_for_what_it_does_not_need() -> None:
    script = (
        "import sys; from slimformer.cli.main import app; "
        "heavy = {'numpy', 'matplotlib', 'tokenizers', 'huggingface_hub', 'gguf', 'jinja2'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    shown = subprocess.run([*PROGRAM, "--help"], check=True, capture_output=True, text=True)
    for command in ("demo", "pull", "inspect", "generate", "prune", "evaluate", "bench", "report"):
        assert command in shown.stdout


def test_version(run: Run) -> None:
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("slimformer ")


def test_indices() -> None:
    assert options.parse_indices(None) == ()
    assert options.parse_indices("4-6, 2,5") == (2, 4, 5, 6)
    for wrong in ("a", "1,", "3-1", "-1", "0-99999999"):
        with pytest.raises(typer.BadParameter):
            options.parse_indices(wrong)
    assert options.parse_protected("0,-1") == (0, -1)
    assert options.parse_protected("none") == ()
    assert options.parse_protected(None) is None
    with pytest.raises(typer.BadParameter):
        options.parse_protected("all")
    assert options.parse_kept(["4=0,1", "2=3"], "HEADS") == {4: (0, 1), 2: (3,)}
    with pytest.raises(typer.BadParameter):
        options.parse_kept(["4=0", "4=1"], "HEADS")


def test_sizes() -> None:
    assert options.parse_size("80MB") == 80_000_000
    assert options.parse_size(" 1.5 gib") == 3 * 2**29
    assert options.parse_size("12") == 12
    assert options.parse_size(None) is None
    for wrong in ("MB", "-1MB", "1XB", "0", "1e3"):
        with pytest.raises(typer.BadParameter):
            options.parse_size(wrong)


def test_json_has_no_infinities() -> None:
    value = {"a": [float("inf"), 1.5], "b": {"c": float("nan")}, "d": "inf"}
    assert finite(value) == {"a": [None, 1.5], "b": {"c": None}, "d": "inf"}
