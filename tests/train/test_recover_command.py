from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from prune.test_allocate import uniform_model
from slimformer.checkpoint import load, save
from slimformer.cli.main import app
from slimformer.report.results import FILE_NAME, Results

SENTENCE = "the light of the river and the stone in the engine to layer "


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A dense model, one pruned by the command line and not repaired, and text."""
    text = tmp_path / "text.txt"
    text.write_text(SENTENCE * 600)
    save(uniform_model(layers=3, neurons=48), tmp_path / "dense")
    options = ("--neurons", "24", "--calibration", text, "--repair", "none")
    result = run("prune", tmp_path / "dense", tmp_path / "slim", *options)
    assert result.exit_code == 0, result.stderr
    return tmp_path / "dense", tmp_path / "slim", text


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_folder_is_recovered_in_its_place(
    folders: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from slimformer.train import loop

    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    dense, slim, text = folders
    before = load(slim)
    fingerprint, recipe = before.fingerprint, before.recipe
    options = ("--teacher", dense, "--data", text, "--tokens", 8192, "--learning-rate", 0.003)
    result = run("recover", slim, *options, "--json")
    assert result.exit_code == 0, result.stderr
    assert '"loss_after"' in result.stdout
    assert '"text_tokens"' in result.stdout
    assert "tokens/s" in result.stderr
    assert load(slim).fingerprint != fingerprint
    assert load(slim).recipe == recipe
    notes = Results.load(slim / FILE_NAME)
    assert str(text) in notes.calibrated_on
    assert "Recovered on 8,192 tokens" in notes.notes[0]
    assert sorted(path.name for path in slim.parent.iterdir()) == ["dense", "slim", "text.txt"]


def test_or_beside_it(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    dense, slim, text = folders
    fingerprint = load(slim).fingerprint
    options = ("--teacher", dense, "--data", text, "--tokens", 2048, "--lora", 2)
    result = run("recover", slim, *options, "--output", tmp_path / "better")
    assert result.exit_code == 0, result.stderr
    assert "better" in result.stdout
    assert load(slim).fingerprint == fingerprint
    assert load(tmp_path / "better").config == load(slim).config


def test_text_that_is_read_again_is_told(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    dense, slim, _ = folders
    short = tmp_path / "short.txt"
    short.write_text(SENTENCE * 200)
    result = run("recover", slim, "--teacher", dense, "--data", short, "--tokens", 8192)
    assert result.exit_code == 0, result.stderr
    assert "times, and what is read again teaches less" in result.stdout


def test_mistakes_are_told(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    dense, slim, text = folders
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    for arguments in (
        (slim, "--teacher", dense, "--data", tmp_path / "none.txt"),
        (slim, "--teacher", tmp_path / "none"),
        (slim, "--teacher", dense, "--data", text, "--output", tmp_path / "mine"),
        (slim, "--teacher", dense, "--data", text, "--learning-rate", "-1"),
    ):
        result = run("recover", *arguments)
        assert result.exit_code == 1
        assert result.stderr.splitlines()[-1].startswith("error: ")
    assert run("recover", slim).exit_code == 2


def test_a_terminal_sees_bars(folders: tuple[Path, Path, Path]) -> None:
    """Preparations and training share one display: a terminal has only one."""
    import pty

    dense, slim, text = folders
    mine, theirs = pty.openpty()
    options = ("recover", slim, "--teacher", dense, "--data", text, "--tokens", 2048)
    process = subprocess.run(
        [sys.executable, "-m", "slimformer", *map(str, options)],
        stdout=subprocess.PIPE,
        stderr=theirs,
        check=False,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "150"},
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a closed terminal
        while part := os.read(mine, 65536):
            shown += part
    os.close(mine)
    assert process.returncode == 0, shown
    assert b"held-out" in shown
