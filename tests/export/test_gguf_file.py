"""Exported GGUF files, read again."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from reference.engines import TOLERANCE, Case, difference
from reference.models import random_checkpoint, random_config
from reference.ragged_llamas import ragged_llama
from slimformer.checkpoint import Checkpoint, load
from slimformer.checkpoint.checkpoint import DTYPES
from slimformer.checkpoint.dequantise import dequantise
from slimformer.checkpoint.gguf_header import open_gguf
from slimformer.config import FfnConfig, LayerConfig
from slimformer.errors import FormatError, StorageError, UnsupportedModelError
from slimformer.export.gguf_file import GgufType, write_gguf
from slimformer.tokenizer import Tokenizer


def uniform(seed: int, dtype: str = "f32") -> Checkpoint:
    config = random_config(np.random.default_rng(seed), ragged=False)
    return random_checkpoint(config, seed, dtype=dtype, tokenizer=True)


def wide(dtype: str = "f32") -> Checkpoint:
    """A model whose rows fill whole blocks but those of the down-projection, of 33 neurons."""
    config = random_config(np.random.default_rng(3), ragged=False)
    (layer,) = set(config.layers)
    assert isinstance(layer.ffn, FfnConfig)
    layer = LayerConfig(layer.attention, dataclasses.replace(layer.ffn, n_neurons=33))
    config = dataclasses.replace(
        config, n_channels=64, norm_divisor=64, tied_head=False, layers=(layer,) * 2
    )
    return random_checkpoint(config, 3, dtype=dtype)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("seed", range(8))
def test_a_uniform_model_comes_back_bit_for_bit(seed: int, dtype: str, tmp_path: Path) -> None:
    before = uniform(seed, dtype)
    changes = write_gguf(before, tmp_path / "model.gguf")
    after = load(tmp_path / "model.gguf")
    assert changes == []
    assert open_gguf(tmp_path / "model.gguf").metadata.text("general.architecture") == "llama"
    assert after.config.layers == before.config.layers
    for name in before.tensors:
        np.testing.assert_array_equal(after.read_f32(name), before.read_f32(name))
        if len(before.tensors[name].shape) > 1:
            assert after.tensors[name].dtype == dtype


@pytest.mark.parametrize("seed", range(30))
def test_a_ragged_model_says_the_same(seed: int, tmp_path: Path) -> None:
    before = ragged_llama(seed)
    tokens = np.random.default_rng(seed).integers(0, before.config.vocab_size, 40)
    write_gguf(before, tmp_path / "model.gguf")
    after = load(tmp_path / "model.gguf")
    found, expected = (
        Case(model, tokens, np.random.default_rng(0)).reference() for model in (after, before)
    )
    assert difference(found, expected) < TOLERANCE


@pytest.mark.parametrize("dtype", [t for t in get_args(GgufType) if t != "auto"])
def test_matrices_are_stored_in_the_type_asked_for(dtype: GgufType, tmp_path: Path) -> None:
    before = wide()
    write_gguf(before, tmp_path / "model.gguf", dtype=dtype)
    file = open_gguf(tmp_path / "model.gguf")
    kinds = {name: tensor.quantisation.name for name, tensor in file.tensors.items()}
    quantised = dtype in ("q8_0", "q4_0")
    assert kinds["blk.0.attn_q.weight"] == dtype.upper()
    assert kinds["blk.1.ffn_up.weight"] == dtype.upper()
    assert kinds["blk.1.ffn_down.weight"] == ("F16" if quantised else dtype.upper())
    assert kinds["token_embd.weight"] == ("Q8_0" if quantised else dtype.upper())
    assert kinds["output.weight"] == kinds["token_embd.weight"]
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    stored = file.tensors["blk.0.ffn_gate.weight"]
    after, given_values = load(tmp_path / "model.gguf"), before.read_f32("layers.0.ffn.gate.weight")
    values = after.read_f32("layers.0.ffn.gate.weight")
    if quantised:
        expected = dequantise(file.tensor_bytes(stored), stored.shape, stored.quantisation)
        np.testing.assert_array_equal(values, expected)
        assert difference(values, given_values) < (0.01 if dtype == "q8_0" else 0.2)
    else:
        np.testing.assert_array_equal(values, given_values.astype(DTYPES[dtype]))


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_gguf(ragged_llama(5), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_the_tokenizer_goes_along(tmp_path: Path) -> None:
    before = ragged_llama(2)
    write_gguf(before, tmp_path / "model.gguf")
    after = load(tmp_path / "model.gguf")
    assert before.tokenizer is not None
    assert after.tokenizer is not None
    ours, theirs = Tokenizer(before.tokenizer), Tokenizer(after.tokenizer)
    text = "the light of the engine, née 42\n\n  and stone"
    assert theirs.encode(text) == ours.encode(text)
    assert theirs.stop_ids == ours.stop_ids
    messages = [{"role": "user", "content": "light"}]
    assert theirs.apply_chat_template(messages) == ours.apply_chat_template(messages)


def test_a_model_without_tokenizer_comes_back_without_one(tmp_path: Path) -> None:
    write_gguf(wide(), tmp_path / "model.gguf")
    assert load(tmp_path / "model.gguf").tokenizer is None


def test_the_file_says_where_it_came_from(tmp_path: Path) -> None:
    recipe = {"schema": 1, "source": "somewhere"}
    write_gguf(dataclasses.replace(wide(), recipe=recipe), tmp_path / "model.gguf")
    metadata = open_gguf(tmp_path / "model.gguf").metadata
    assert metadata.text("general.name") == "random-3"
    assert metadata.text("slimformer.recipe") == '{"schema": 1, "source": "somewhere"}'
    assert "slimformer.version" in metadata


def test_only_a_gguf_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(StorageError, match="not a GGUF file"):
        write_gguf(wide(), path)
    with pytest.raises(StorageError, match="not a GGUF file"):
        write_gguf(wide(), tmp_path)
    assert path.read_text() == "mine"
    write_gguf(wide(), tmp_path / "model.gguf")
    write_gguf(uniform(1), tmp_path / "model.gguf")
    assert load(tmp_path / "model.gguf").config.layers == uniform(1).config.layers


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_gguf(wide(), tmp_path / "model.gguf")
    before = (tmp_path / "model.gguf").read_bytes()
    values = wide().read_f32("layers.1.ffn.up.weight") * 1e6
    with pytest.raises(FormatError, match=r"blk.1.ffn_up.weight: values beyond the range of f16"):
        write_gguf(
            wide().with_tensors({"layers.1.ffn.up.weight": values}),
            tmp_path / "model.gguf",
            dtype="f16",
        )
    assert (tmp_path / "model.gguf").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_what_gguf_has_no_word_for_is_refused(tmp_path: Path) -> None:
    capped = dataclasses.replace(wide().config, logit_soft_cap=3.0)
    checkpoint = dataclasses.replace(wide(), config=capped)
    with pytest.raises(UnsupportedModelError, match="logit_soft_cap has no equivalent"):
        write_gguf(checkpoint, tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()
