from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from gguf import GGUFWriter
from huggingface_hub.errors import RepositoryNotFoundError

from reference.gguf_files import finish
from reference.models import random_checkpoint
from slimformer.checkpoint import load, save
from slimformer.config import AttentionConfig, FfnConfig, LayerConfig, ModelConfig, RopeConfig
from slimformer.errors import DownloadError, ModelNotFoundError, UnsupportedModelError

ATTENTION = AttentionConfig(2, 1, 4, 4, (0, 0), 0.5, RopeConfig(4))
MODEL = random_checkpoint(
    ModelConfig("llama", 300, 8, 8, 1e-5, True, 16, (LayerConfig(ATTENTION, FfnConfig(6)),)),
    1,
    tokenizer=True,
)


@pytest.mark.parametrize("name", ["", "nothing", "a/b", "x" * 5000, "a\0b", "SMOLLM2"])
def test_what_is_not_there_is_not_found(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="no such model; give a GGUF file"):
        load(name)


def test_a_folder_goes_before_a_packaged_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(MODEL, "smollm2-135m-instruct")
    assert load("smollm2-135m-instruct").config == MODEL.config
    assert load("smollm2-135m-instruct").name == "smollm2-135m-instruct"
    assert load(Path("smollm2-135m-instruct")).tokenizer == MODEL.tokenizer


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(UnsupportedModelError, match="not a GGUF file"):
        load(tmp_path / "pipe.gguf")


def test_a_piece_of_a_split_file_says_how_to_join_it(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "piece.gguf", "llama")
    writer.add_uint16("split.count", 2)
    finish(writer)
    with pytest.raises(UnsupportedModelError, match="--merge"):
        load(tmp_path / "piece.gguf")


class Hub:
    """Stands in for the hub: gives one folder, remembers what was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[tuple[str, str | None, bool]] = []
        self.error: Exception | None = None

    def download(self, repo: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        self.asked.append((repo, revision, "model.safetensors" in allow_patterns))
        if self.error is not None:
            raise self.error
        return str(self.folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    fake = Hub(tmp_path / "snapshot")
    save(MODEL, fake.folder)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.download)
    return fake


def test_the_hub_is_asked_for_settings_first_and_for_one_revision(hub: Hub) -> None:
    model = load("hf:org/name.v1@refs/pr/1")
    assert model.config == MODEL.config
    assert model.name == "hf:org/name.v1@refs/pr/1"
    assert hub.asked == [("org/name.v1", "refs/pr/1", False), ("org/name.v1", "refs/pr/1", True)]
    load("hf:org/name")
    assert hub.asked[2:] == [("org/name", None, False), ("org/name", None, True)]


def test_weights_of_a_family_that_does_not_run_are_not_fetched(hub: Hub) -> None:
    text = (hub.folder / "config.json").read_text()
    (hub.folder / "config.json").write_text(text.replace('"llama"', '"mamba"'))
    with pytest.raises(UnsupportedModelError, match="'mamba' does not run here"):
        load("hf:org/name")
    assert hub.asked == [("org/name", None, False)]
    (hub.folder / "config.json").unlink()
    with pytest.raises(ModelNotFoundError, match=r"has no config\.json"):
        load("hf:org/name")


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (ConnectionError("no route"), DownloadError, "no route; check the network"),
        (ValueError("offline"), DownloadError, "copy the model's folder"),
    ],
)
def test_a_hub_out_of_reach_is_a_download_error(
    hub: Hub, error: Exception, expected: Any, message: str
) -> None:
    hub.error = error
    with pytest.raises(expected, match=message):
        load("hf:org/name")


def test_a_name_that_the_hub_does_not_know_is_not_found(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = RepositoryNotFoundError.__new__(RepositoryNotFoundError)
    hub.error = error
    with pytest.raises(ModelNotFoundError, match="not on the hub"):
        load("hf:org/name")


@pytest.mark.parametrize("name", ["hf:", "hf:name", "hf:a/b/c", "hf:../..@", "hf:a b/c"])
def test_names_of_another_form_are_not_found(name: str, hub: Hub) -> None:
    with pytest.raises(ModelNotFoundError, match="expected hf:org/name"):
        load(name)
    assert hub.asked == []
