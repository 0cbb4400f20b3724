"""``slimformer export``, run as a user would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slimformer.checkpoint import load
from slimformer.cli.export import MAX_PLACES
from slimformer.export import verify as verifying

Run = Callable[..., Any]


@pytest.fixture
def slim(run: Run, dense: Path, tmp_path: Path) -> Path:
    """A model with an uneven layer and one without FFN."""
    options = ("--heads", "1=0,1,2", "--drop-ffn", "3", "--repair", "none")
    result = run("prune", dense, tmp_path / "slim", *options)
    assert result.exit_code == 0, result.stderr
    return tmp_path / "slim"


def test_to_gguf(run: Run, run_json: Run, slim: Path, tmp_path: Path) -> None:
    output = tmp_path / "slim.gguf"
    seen = run_json("export", slim, output, "--to", "gguf", "--type", "f32")
    after = load(output).config
    assert seen["format"] == "gguf"
    assert seen["bytes"] == output.stat().st_size
    assert seen["parameters"] == after.parameters()
    assert seen["added_parameters"] == after.parameters() - load(slim).config.parameters()
    assert [(change["what"], change["where"]) for change in seen["changes"]] == [
        ("heads filled up to even groups", ["layer 1 attention"]),
        ("given a neuron of zeros", ["written layer 3"]),
    ]
    assert seen["verification"] is None
    people = run("export", slim, output, "--to", "gguf")
    assert people.exit_code == 0, people.stderr
    assert "given a neuron of zeros: written layer 3 (+128 parameters)" in people.stderr
    assert "of them given back" in people.stdout


def test_to_huggingface(run: Run, run_json: Run, slim: Path, tmp_path: Path) -> None:
    ragged = run_json("export", slim, tmp_path / "ragged", "--to", "huggingface")
    assert (ragged["added_parameters"], ragged["changes"]) == (0, [])
    assert (tmp_path / "ragged" / "modeling_slimformer.py").exists()
    padded = run_json("export", slim, tmp_path / "padded", "--to", "huggingface", "--pad")
    assert padded["added_parameters"] > 0
    assert len(set(load(tmp_path / "padded").config.layers)) == 1


def test_many_places_are_counted(run: Run, dense: Path, tmp_path: Path) -> None:
    neurons = ("--neurons", "60", "--repair", "none")
    run("prune", dense, tmp_path / "slim", "--heads", "0=0", "--heads", "1=0", *neurons)
    result = run("export", tmp_path / "slim", tmp_path / "out", "--to", "huggingface", "--pad")
    assert result.exit_code == 0, result.stderr
    assert MAX_PLACES > 2
    assert "heads filled up to even groups: layer 0 attention, layer 1 attention" in result.stderr


def test_verifying_without_the_other_engine_says_so(
    run: Run, slim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(verifying.ENGINES, "gguf", "no_such_module")
    result = run("export", slim, tmp_path / "slim.gguf", "--to", "gguf", "--verify")
    assert result.exit_code == 0
    assert (
        "verification of an export needs llama.cpp, which is not installed: pip install"
        in result.stderr
    )


def test_a_difference_is_a_failure(
    run: Run, slim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def far_off(*_arguments: object, **_options: object) -> verifying.Verification:
        return verifying.Verification("llama.cpp", 9, 10.0, 11.0, 0.005, same_tokens=True)

    monkeypatch.setattr(verifying, "verify", far_off)
    result = run("export", slim, tmp_path / "slim.gguf", "--to", "gguf", "--verify")
    assert result.exit_code == 1
    assert "perplexity of 11.0000 where 10.0000 was expected, more than 0.5% off" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--to", "onnx"), "Invalid value for '--to'"),
        ((), "Missing option '--to'"),
        (("--to", "huggingface", "--type", "q8_0"), "for huggingface, found 'q8_0'"),
    ],
)
def test_mistakes(
    run: Run, dense: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    result = run("export", dense, tmp_path / "out", *options)
    assert result.exit_code in (1, 2)
    assert message in result.stderr
    assert not (tmp_path / "out").exists()
