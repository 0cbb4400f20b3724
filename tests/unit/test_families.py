"""What is common to all described families, without another engine."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reference.gguf_families import write_family
from reference.models import random_checkpoint
from slimformer.checkpoint import Checkpoint, load, save
from slimformer.checkpoint.checkpoint import Tensor
from slimformer.checkpoint.families import FAMILIES, Family
from slimformer.checkpoint.fields import Fields
from slimformer.checkpoint.layout import StoredTensor, folder_layout, gguf_layout
from slimformer.config import ModelConfig
from slimformer.errors import UnsupportedModelError

SIZES = {"channels": 32, "layers": 6, "heads": 4, "neurons": 9, "positions": 64}

each = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
in_gguf = pytest.mark.parametrize(
    "family",
    [family for family in FAMILIES if family.gguf_architecture is not None],
    ids=lambda family: family.name,
)


def settings_of(family: Family, **more: Any) -> dict[str, Any]:
    """The settings of a small model, those that may be left out being left out."""
    keys = family.description.keys
    own = {getattr(keys, name): value for name, value in SIZES.items()}
    windows = family.description.blocks.windows
    if windows is not None:
        own |= {windows.key: 7, windows.switch: True} if windows.switch else {windows.key: 7}
    experts = family.description.blocks.experts
    if experts is not None:
        over_chosen = experts.gguf_softmax_over == "chosen"
        own |= {experts.counts[0]: 3, experts.top_k: 2, "norm_topk_prob": over_chosen}
    return {"vocab_size": 50, **own, **more}


def config_of(family: Family, **more: Any) -> ModelConfig:
    return family.from_huggingface(Fields("config.json", settings_of(family, **more)))


def model_of(family: Family, dtype: str = "f32") -> Checkpoint:
    return random_checkpoint(config_of(family), 1, dtype=dtype)


@each
def test_settings_say_what_they_were_read_from(family: Family) -> None:
    config = config_of(family)
    written = family.to_huggingface(config)
    assert written is not None
    assert family.from_huggingface(Fields("config.json", written)) == config


@each
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_a_saved_model_comes_back_bit_for_bit(family: Family, dtype: str, tmp_path: Path) -> None:
    model = model_of(family, dtype)
    save(model, tmp_path / "a")
    read = load(tmp_path / "a")
    assert read.config == model.config
    assert read.fingerprint == model.fingerprint
    save(read, tmp_path / "b")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@each
def test_buffers_and_missing_prefixes_are_no_matter(family: Family, tmp_path: Path) -> None:
    from slimformer.checkpoint.safetensors_files import SINGLE_FILE, open_folder, write_file

    model = model_of(family)
    save(model, tmp_path / "model")
    stored = {
        name.removeprefix(family.prefix): Tensor.of(tensor.read().copy())
        for name, tensor in open_folder(tmp_path / "model").items()
    }
    mask = Tensor.of(np.zeros((1, 1, 4, 4), np.float32))
    stored |= {f"h.{index}{end}": mask for index in (0, 1) for end in family.buffers}
    write_file(tmp_path / "model" / SINGLE_FILE, stored)
    assert load(tmp_path / "model").fingerprint == model.fingerprint


@in_gguf
def test_a_gguf_file_says_the_same(family: Family, tmp_path: Path) -> None:
    model = model_of(family)
    write_family(tmp_path / "model.gguf", without_tokenizer(model))
    read = load(tmp_path / "model.gguf")
    assert read.config == model.config
    for name in model.tensors:
        # Offsets of norm weights are added and taken off again, in float32.
        np.testing.assert_allclose(read.read_f32(name), model.read_f32(name), rtol=0, atol=2e-7)


def without_tokenizer(model: Checkpoint) -> Checkpoint:
    return dataclasses.replace(model, tokenizer=None)


@each
@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("quantization_config", {"bits": 4}),
        ("shared_expert_intermediate_size", 8),
        ("clip_qkv", 8.0),
        ("use_bidirectional_attention", True),
        ("residual_multiplier", 0.2),
    ],
)
def test_unknown_features_are_refused_by_name(family: Family, setting: str, value: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=setting):
        config_of(family, **{setting: value})


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("mistral", {"attention_bias": True}, "attention_bias: True"),
        ("mistral", {"num_local_experts": 8}, "num_local_experts: 8"),
        ("qwen3_moe", {"mlp_only_layers": [1]}, "mlp_only_layers"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step: 2"),
        ("qwen2", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ("llama", {"no_rope_layers": [1, 0]}, "no_rope_layers"),
        ("llama", {"layer_types": ["sliding_attention"] * 6}, "layer_types"),
        ("phi3", {"rope_scaling": {"type": "mrope"}}, "rope type 'mrope'"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt_neox", {"attention_bias": False}, "attention_bias: False"),
        ("gpt_neox", {"hidden_act": "gelu_10"}, "hidden_act: 'gelu_10'"),
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before"),
        ("opt", {"word_embed_proj_dim": 16}, "word_embed_proj_dim: 16"),
    ],
)
def test_what_a_family_does_not_have_is_refused(
    name: str, settings: dict[str, Any], message: str
) -> None:
    (family,) = (family for family in FAMILIES if family.name == name)
    with pytest.raises(UnsupportedModelError, match=message):
        config_of(family, **settings)


@each
def test_layouts_take_apart_what_they_join(family: Family) -> None:
    model = model_of(family)
    layouts = [folder_layout(family, model.config, plain=plain) for plain in (True, False)]
    if family.gguf_architecture is not None:
        layouts.append(gguf_layout(family, model.config))
    for layout in layouts:
        assert len({stored.name for stored in layout}) == len(layout)
        parts: dict[str, Tensor] = {}
        for stored in layout:
            joined = stored.join(model.tensors)
            assert joined.read().shape == joined.shape == stored.shape
            parts |= stored.take(joined)
        assert parts.keys() == model.config.tensor_shapes().keys()
        for name, part in parts.items():
            values = part.read()
            assert values.shape == part.shape
            np.testing.assert_allclose(values, model.read(name), rtol=0, atol=2e-7)


def test_rows_of_packed_tensors() -> None:
    a, b = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    tensors = {"a": Tensor.of(a), "b": Tensor.of(b)}
    rows = (np.array([0, 2]), np.array([1, 3]))
    parts = tuple(zip(tensors, rows, strict=True))
    stored = StoredTensor("ab", (2, 4), parts, transposed=True)
    np.testing.assert_array_equal(stored.join(tensors).read(), [[0, 4, 2, 6], [1, 5, 3, 7]])
    narrow = {name: Tensor.of(t.read().astype(np.float16)) for name, t in tensors.items()}
    assert stored.join(narrow).dtype == "f16"
    assert stored.join({**narrow, "b": tensors["b"]}).dtype == "f32"
