from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from reference.models import random_checkpoint
from slimformer.checkpoint import Checkpoint, Tensor, load
from slimformer.checkpoint.checkpoint import DTYPES
from slimformer.checkpoint.families import by_name
from slimformer.checkpoint.fields import MAX_JSON_BYTES
from slimformer.config import (
    AttentionConfig,
    FfnConfig,
    LayerConfig,
    LinearRopeScaling,
    Llama3RopeScaling,
    ModelConfig,
    RopeConfig,
)
from slimformer.errors import (
    FormatError,
    ModelNotFoundError,
    SlimformerError,
    UnsupportedModelError,
)

SETTINGS: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 12,
    "intermediate_size": 7,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "vocab_size": 300,
    "hidden_act": "silu",
    "is_llama_config": True,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

Write = Callable[..., Path]


def expected(
    rope: RopeConfig | None = None, *, tied: bool = False, dtype: str = "f32"
) -> Checkpoint:
    rope = rope or RopeConfig(6)
    attention = AttentionConfig(4, 2, 6, 6, (0, 0, 1, 1), 6**-0.5, rope)
    layers = (LayerConfig(attention, FfnConfig(7)),) * 2
    config = ModelConfig("llama", 300, 12, 12, 1e-5, tied, 64, layers)
    return random_checkpoint(config, 2, dtype=dtype)


def stored(checkpoint: Checkpoint) -> dict[str, np.ndarray[Any, Any]]:
    family = by_name("llama", "test")
    return {family.huggingface_name(name): checkpoint.read(name) for name in checkpoint.tensors}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a Hugging Face folder; settings that are ``None`` are left out."""

    def write_folder(
        tensors: dict[str, Any] | None = None, files: dict[str, Any] | None = None, **settings: Any
    ) -> Path:
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        merged = {k: v for k, v in {**SETTINGS, **settings}.items() if v is not None}
        (folder / "config.json").write_text(json.dumps(merged))
        save_file(stored(expected()) if tensors is None else tensors, folder / "model.safetensors")
        for name, content in (files or {}).items():
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / name).write_text(text)
        return folder

    return write_folder


def check(folder: Path, wanted: Checkpoint) -> None:
    model = load(folder)
    assert model.config == wanted.config
    for name in wanted.tensors:
        np.testing.assert_array_equal(model.read(name), wanted.read(name))
        assert model.tensors[name].dtype == wanted.tensors[name].dtype


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_folder_is_read_in_its_own_type(write: Write, dtype: str) -> None:
    wanted = expected(dtype=dtype)
    check(write(stored(wanted)), wanted)


@pytest.mark.parametrize(
    ("settings", "rope"),
    [
        ({}, RopeConfig(6)),
        ({"rope_theta": 500.0}, RopeConfig(6, 500.0)),
        ({"rope_theta": 500.0, "rope_scaling": None}, RopeConfig(6, 500.0)),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            RopeConfig(6, scaling=LinearRopeScaling(2.0)),
        ),
        (
            {"rope_theta": 500.0, "rope_scaling": LLAMA3},
            RopeConfig(6, 500.0, Llama3RopeScaling(8.0, 1.0, 4.0, 32)),
        ),
        (
            {"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}},
            RopeConfig(6, 500.0),
        ),
        (
            {"rope_parameters": {"rope_theta": 500.0, **LLAMA3}},
            RopeConfig(6, 500.0, Llama3RopeScaling(8.0, 1.0, 4.0, 32)),
        ),
    ],
)
def test_rope_settings_of_transformers_4_and_5(
    write: Write, settings: dict[str, Any], rope: RopeConfig
) -> None:
    check(write(**settings), expected(rope))


def test_settings_that_may_be_left_out(write: Write) -> None:
    config = load(write(num_key_value_heads=2, rms_norm_eps=None)).config
    assert config.norm_eps == 1e-6
    with pytest.raises(FormatError, match="hidden_size: expected an integer, found none"):
        load(write(hidden_size=None))
    with pytest.raises(FormatError, match="rotary_dim: expected even, found 3"):
        load(write(head_dim=None))  # 12 channels over 4 heads


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "falcon"}, "'falcon' does not run here; known: bert, .*, llama, mistral"),
        ({"model_type": "gemma3"}, "'gemma3'"),
        ({"model_type": "qwen3"}, "LlamaForCausalLM does not run here; .* Qwen3ForCausalLM"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForCausalLM"),
        ({"hidden_act": "quick_gelu"}, "hidden_act: 'quick_gelu'"),
        ({"sliding_window": 128}, "sliding_window: 128"),
        ({"attn_logit_softcapping": 30.0}, "attn_logit_softcapping"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial"),
        ({"rope_interleaved": True}, "rope_interleaved"),
        (
            {"rope_scaling": {"rope_type": "proportional", "factor": 2.0}},
            "rope type 'proportional'",
        ),
    ],
)
def test_what_does_not_run_is_refused_by_name(
    write: Write, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        load(write(**settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"num_hidden_layers": 3},
        {"num_hidden_layers": 0},
        {"num_hidden_layers": 1 << 40},
        {"num_attention_heads": 1 << 40},
        {"num_key_value_heads": 3},
        {"num_key_value_heads": 1 << 40},
        {"hidden_size": -12},
        {"hidden_size": "12"},
        {"hidden_size": True},
        {"hidden_size": 12.0},
        {"head_dim": 3},
        {"vocab_size": 301},
        {"intermediate_size": 8},
        {"rms_norm_eps": 0},
        {"rope_theta": -1},
        {"rope_scaling": [1]},
        {"rope_scaling": {"type": "linear"}},
        {"rope_scaling": {"type": "linear", "factor": 0}},
        {"rope_scaling": {"type": "yarn", "factor": -1}},
        {"rope_scaling": {"type": "yarn", "beta_slow": 0}},
        {"rope_scaling": {"type": "yarn"}, "rope_theta": 1},
        {"rope_scaling": {"type": "longrope", "short_factor": [1, 1, 1]}},
        {"rope_scaling": {"type": "longrope", "short_factor": [1, 1], "long_factor": [1, 1]}},
        {"rope_scaling": {"type": "longrope", "short_factor": "1", "long_factor": [1, 1, 1]}},
        {"attention_bias": True},
        {"attention_bias": "yes"},
        {"mlp_bias": True},
        {"tie_word_embeddings": True},
        {"architectures": []},
        {"architectures": "LlamaForCausalLM"},
        {"model_type": 3},
    ],
)
def test_contradictions_are_format_errors(write: Write, settings: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        load(write(**settings))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"a": 1, "a": 2}',
        '{"a": NaN}',
        r'{"a": "\uD83D"}',
        '{"a": ' * 100_000,
        '{"a": ' + "9" * 100_000 + "}",
        " " * (MAX_JSON_BYTES + 1),
    ],
    ids=["empty", "list", "cut", "twice", "nan", "half", "deep", "digits", "large"],
)
def test_hostile_json_is_a_format_error(write: Write, text: str) -> None:
    with pytest.raises(FormatError, match=r"config\.json"):
        load(write(files={"config.json": text}))


def test_escaped_pairs_are_text(write: Write) -> None:
    settings = json.dumps({**SETTINGS, "note": "🙂"})
    assert r"\ud83d" in settings
    check(write(files={"config.json": settings}), expected())


def test_bytes_that_are_no_text_are_a_format_error(write: Write) -> None:
    folder = write()
    (folder / "config.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(FormatError, match="UTF-8"):
        load(folder)


def test_missing_and_unexpected_tensors_are_named(write: Write) -> None:
    tensors = stored(expected())
    with pytest.raises(FormatError, match=r"unexpected tensors \['model.layers.0.extra'\]"):
        load(write({**tensors, "model.layers.0.extra": np.zeros(2, np.float32)}))
    lost = tensors.pop("model.norm.weight")
    with pytest.raises(FormatError, match=r"model.norm.weight: expected, found none"):
        load(write(tensors))
    with pytest.raises(FormatError, match=r"model.norm.weight: expected shape \(12,\)"):
        load(write({**tensors, "model.norm.weight": lost[:5]}))
    with pytest.raises(UnsupportedModelError, match=r"model.norm.weight: element type F64"):
        load(write({**tensors, "model.norm.weight": lost.astype(np.float64)}))


def test_stored_rotary_buffers_are_passed_over(write: Write) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    check(write({**stored(expected()), name: np.ones(3, np.float32)}), expected())


def test_a_tied_head_may_be_stored_again_only_as_it_is(write: Write) -> None:
    wanted = expected(tied=True)
    tensors = stored(wanted)
    check(write(tensors, tie_word_embeddings=True), wanted)
    again = tensors["model.embed_tokens.weight"].copy()
    check(write({**tensors, "lm_head.weight": again}, tie_word_embeddings=True), wanted)
    again[0, 0] += 1
    with pytest.raises(FormatError, match=r"lm_head.weight: expected the values"):
        load(write({**tensors, "lm_head.weight": again}, tie_word_embeddings=True))


def shard(folder: Path, weight_map: dict[str, Any] | None = None) -> Path:
    """Split a folder's tensors over two files and an index."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    tensors = stored(expected())
    names = sorted(tensors)
    files = {"model-00001-of-00002.safetensors": names[:9]}
    files["model-00002-of-00002.safetensors"] = names[9:]
    for file, members in files.items():
        save_file({name: tensors[name] for name in members}, folder / file)
    homes = {name: file for file, members in files.items() for name in members}
    index = {"metadata": {"total_size": 1}, "weight_map": {**homes, **(weight_map or {})}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_shards_are_one_model(write: Write) -> None:
    check(shard(write()), expected())


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"extra": "model-00001-of-00002.safetensors"}, "disagree about"),
        ({"model.norm.weight": "model-00001-of-00002.safetensors"}, "disagree about"),
        ({"extra": "model-00003-of-00003.safetensors"}, "expected in this folder"),
        ({"extra": "../../../etc/passwd"}, "name of a .safetensors file"),
        ({"extra": "../model.safetensors"}, "name of a .safetensors file"),
        ({"extra": "/model.safetensors"}, "name of a .safetensors file"),
        ({"extra": "a\\b.safetensors"}, "name of a .safetensors file"),
        ({"extra": ".."}, "name of a .safetensors file"),
        ({"extra": 3}, "expected a string"),
    ],
)
def test_hostile_indices_are_format_errors(
    write: Write, weight_map: dict[str, Any], message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        load(shard(write(), weight_map))


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": []}])
def test_an_index_without_tensors_is_a_format_error(write: Write, index: dict[str, Any]) -> None:
    folder = shard(write())
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FormatError, match="weight_map"):
        load(folder)


def test_pickled_weights_are_refused_with_advice(write: Write) -> None:
    folder = write(files={"pytorch_model.bin": "x"})
    (folder / "model.safetensors").unlink()
    with pytest.raises(UnsupportedModelError, match="save_pretrained"):
        load(folder)


def test_a_folder_without_weights_or_model_is_not_found(write: Write, tmp_path: Path) -> None:
    folder = write()
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match="found neither"):
        load(folder)
    with pytest.raises(ModelNotFoundError, match=r"expected config\.json"):
        load(tmp_path)
    with pytest.raises(ModelNotFoundError, match="smollm2-135m-instruct"):
        load(tmp_path / "nothing")
    with pytest.raises(ModelNotFoundError, match="expected hf:org/name"):
        load("hf:nothing")


def test_files_that_are_no_models_are_refused(write: Write) -> None:
    folder = write(files={"notes.txt": "hello"})
    with pytest.raises(UnsupportedModelError, match="give the folder"):
        load(folder / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match="not a GGUF file"):
        load(folder / "notes.txt")


def test_a_file_cut_anywhere_is_a_format_error(write: Write) -> None:
    folder = write()
    path = folder / "model.safetensors"
    data = path.read_bytes()
    for length in [*range(0, 400, 7), *range(400, len(data), 499), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(FormatError, match=r"model\.safetensors"):
            load(folder)


def test_flipped_headers_give_a_model_or_a_typed_error(write: Write) -> None:
    folder = write()
    path = folder / "model.safetensors"
    data = path.read_bytes()
    (size,) = struct.unpack_from("<Q", data)
    rng = np.random.default_rng(5)
    for _ in range(400):
        flipped = bytearray(data)
        flipped[rng.integers(0, size + 8)] = rng.integers(256)
        path.write_bytes(flipped)
        try:
            load(folder)
        except SlimformerError:
            continue


def test_tensors_are_views_of_the_mapped_file(write: Write) -> None:
    """Reading a tensor takes no memory of its own."""
    tensor: Tensor = load(write()).tensors["embedding.weight"]
    assert not tensor.read().flags.owndata
    assert not tensor.read().flags.writeable
