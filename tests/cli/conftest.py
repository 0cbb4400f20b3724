"""A small model on disk, and the command line to use it with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from reference.models import random_checkpoint
from slimformer.checkpoint import save
from slimformer.cli.main import app
from slimformer.config import AttentionConfig, FfnConfig, LayerConfig, ModelConfig, RopeConfig

Run = Callable[..., Any]


def small_config() -> ModelConfig:
    """Four equal layers, enough to have something removed."""
    attention = AttentionConfig(
        n_heads=4,
        n_kv_heads=2,
        head_dim=8,
        value_dim=8,
        q_to_kv=(0, 0, 1, 1),
        scale=8**-0.5,
        rope=RopeConfig(rotary_dim=8),
    )
    return ModelConfig(
        family="llama",
        vocab_size=300,
        n_channels=32,
        norm_divisor=32,
        norm_eps=1e-5,
        tied_head=True,
        max_positions=256,
        layers=(LayerConfig(attention, FfnConfig(n_neurons=64)),) * 4,
    )


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder."""
    folder = tmp_path_factory.mktemp("models") / "dense"
    save(random_checkpoint(small_config(), 1, tokenizer=True), folder)
    return folder


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file of some hundred tokens."""
    path = tmp_path_factory.mktemp("texts") / "text.txt"
    path.write_text("the light of the river and the stone in the engine to layer " * 10)
    return path


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one task of each kind."""
    folder = tmp_path_factory.mktemp("tasks")
    choice = {"context": "the river", "choices": ["of stone", "of light"], "gold": 1}
    (folder / "choice.jsonl").write_text(json.dumps(choice) + "\n")
    last = {"context": "the light of the", "continuation": " river"}
    (folder / "last.jsonl").write_text(json.dumps(last) + "\n")
    return folder


@pytest.fixture
def run() -> Run:
    """Call the command line; gives ``exit_code``, ``stdout`` and ``stderr``."""

    def invoke(*arguments: object) -> Any:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return invoke


@pytest.fixture
def run_json(run: Run) -> Callable[..., Any]:
    """The one JSON object that a command prints."""

    def invoke(*arguments: object) -> Any:
        result = run(*arguments, "--json")
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    return invoke
