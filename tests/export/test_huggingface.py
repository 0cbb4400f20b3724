"""Exported folders, as far as they can be looked at without transformers."""

from __future__ import annotations

import ast
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import slimformer as sf
from reference.models import random_checkpoint, random_config
from reference.ragged_llamas import ragged_llama
from slimformer.checkpoint import load, save
from slimformer.errors import ConfigError, UnsupportedModelError
from slimformer.export import export

CODE = "modeling_slimformer.py"


def test_a_uniform_model_is_what_save_writes(tmp_path: Path) -> None:
    config = random_config(np.random.default_rng(1), ragged=False)
    config = dataclasses.replace(config, n_channels=36, norm_divisor=36)
    checkpoint = random_checkpoint(config, 1, tokenizer=True)
    export(checkpoint, tmp_path / "exported", to="huggingface")
    save(checkpoint, tmp_path / "saved")
    for path in (tmp_path / "saved").iterdir():
        assert (tmp_path / "exported" / path.name).read_bytes() == path.read_bytes()
    assert not (tmp_path / "exported" / CODE).exists()


def test_a_ragged_model_carries_its_code_and_is_read_here_too(tmp_path: Path) -> None:
    checkpoint = ragged_llama(1)
    result = export(checkpoint, tmp_path / "model", to="huggingface", dtype="bf16")
    assert (result.parameters, result.changes) == (checkpoint.config.parameters(), [])
    settings = json.loads((tmp_path / "model" / "config.json").read_text())
    classes = {
        node.name
        for node in ast.parse((tmp_path / "model" / CODE).read_text()).body
        if isinstance(node, ast.ClassDef)
    }
    for name in settings["auto_map"].values():
        file, _, wanted = name.partition(".")
        assert f"{file}.py" == CODE
        assert wanted in classes
    after = load(tmp_path / "model")
    assert after.config == checkpoint.config
    export(after, tmp_path / "model", to="huggingface")
    save(after, tmp_path / "model")
    assert not (tmp_path / "model" / CODE).exists()


def test_padding_gives_a_plain_model_and_tells_its_size(tmp_path: Path) -> None:
    checkpoint = ragged_llama(3)
    result = export(checkpoint, tmp_path / "model", to="huggingface", pad=True)
    settings = json.loads((tmp_path / "model" / "config.json").read_text())
    assert settings["architectures"] == ["LlamaForCausalLM"]
    padded = load(tmp_path / "model").config
    assert len(set(padded.layers)) == 1
    assert result.parameters == padded.parameters()
    assert result.added_parameters == padded.parameters() - checkpoint.config.parameters() > 0


def test_a_padded_gguf_is_of_the_family_itself(tmp_path: Path) -> None:
    result = sf.export(ragged_llama(3), tmp_path / "model.gguf", to="gguf", dtype="q8_0", pad=True)
    after = load(tmp_path / "model.gguf")
    assert len(set(after.config.layers)) == 1
    assert after.config.parameters() == result.parameters
    assert result.dtype == "q8_0"


def test_settings_are_checked(tmp_path: Path) -> None:
    checkpoint = ragged_llama(1)
    with pytest.raises(ConfigError, match="to: expected gguf or huggingface, found 'onnx'"):
        export(checkpoint, tmp_path / "x", to="onnx")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expected one of auto, f32, f16, bf16 for huggingface"):
        export(checkpoint, tmp_path / "x", to="huggingface", dtype="q8_0")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("model", "random-1: family of a ragged model"),
        ("layer", "random-1: layer 0: attention of a ragged model"),
        ("attention", "random-1: layer 0 attention: head_dim of a ragged model"),
    ],
)
def test_what_the_code_does_not_know_is_refused(
    kind: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slimformer.export import huggingface

    monkeypatch.setitem(huggingface._MODELLED, kind, frozenset())
    with pytest.raises(UnsupportedModelError, match=message):
        export(ragged_llama(1, links=False), tmp_path / "model", to="huggingface")
