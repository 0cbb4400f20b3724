"""GGUF files of any shape, written with the ``gguf`` package's own writer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import quantize

from slimformer.checkpoint import Checkpoint
from slimformer.checkpoint.families import by_name
from slimformer.config import AttentionConfig, FfnConfig

Array = npt.NDArray[Any]

NO_PACKAGE_QUANTISER = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
"""Types that the package can only expand; blocks of them are made of random bytes."""


def encode(values: Array, kind: str, seed: int = 0) -> Array:
    """Stored form of float32 values [rows, columns], as the writer takes it."""
    quantisation = GGMLQuantizationType[kind]
    if kind not in NO_PACKAGE_QUANTISER:
        return np.asarray(quantize(values.astype(np.float32), quantisation))
    block_size, block_bytes = GGML_QUANT_SIZES[quantisation]
    blocks = values.size // block_size
    data = np.random.default_rng(seed).integers(0, 256, (blocks, block_bytes), dtype=np.uint8)
    # Half-precision scales lie at either end of a block: keep them finite and small.
    for begin in (0, 2, block_bytes - 4, block_bytes - 2):
        data[:, begin + 1] &= 0x2F
    return data.reshape(*values.shape[:-1], -1)


def interleave(values: Array, n_heads: int, rotary_dim: int) -> Array:
    """Rows as a llama GGUF keeps them: the members of a rotary pair next to each other."""
    heads = values.reshape(n_heads, -1, *values.shape[1:]).copy()
    half = rotary_dim // 2
    rotated = heads[:, :rotary_dim].copy()
    heads[:, 0:rotary_dim:2] = rotated[:, :half]
    heads[:, 1:rotary_dim:2] = rotated[:, half:]
    return heads.reshape(values.shape)


def write_llama(
    path: Path,
    checkpoint: Checkpoint,
    *,
    kind: str = "F32",
    settings: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Array] | None = None,
    omit: Sequence[str] = (),
) -> None:
    """Write a uniform model as a llama-architecture GGUF.

    ``kind`` is the element type of matrices. ``settings`` (under the ``llama.`` prefix; integers,
    floats or lists) and ``tensors`` (file names) add to, or replace, what the shape implies;
    what ``omit`` names is left out.
    """
    config = checkpoint.config
    family = by_name(config.family, "test")
    writer = GGUFWriter(path, "llama")
    for key, value in {**_settings(checkpoint), **(settings or {})}.items():
        if key not in omit:
            add_value(writer, f"llama.{key}", value)
    arrays: dict[str, tuple[Array, str]] = {}
    for index, name in enumerate(config.tensor_shapes()):
        values = _stored_rows(checkpoint, name)
        stored_as = kind if values.ndim > 1 else "F32"
        arrays[family.gguf_name(name)] = (encode(values, stored_as, index), stored_as)
    for name, values in (tensors or {}).items():
        arrays[name] = (values, "F64" if values.dtype == np.float64 else "F32")
    for name, (values, stored_as) in arrays.items():
        if name not in omit:
            writer.add_tensor(name, values, raw_dtype=GGMLQuantizationType[stored_as])
    finish(writer)


def finish(writer: GGUFWriter) -> None:
    """Write everything and close."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _settings(checkpoint: Checkpoint) -> dict[str, Any]:
    config = checkpoint.config
    attentions = [layer.attention for layer in config.layers]
    ffns = [layer.ffn for layer in config.layers]
    assert all(isinstance(attention, AttentionConfig) for attention in attentions)
    assert all(isinstance(ffn, FfnConfig) for ffn in ffns)
    widths = {
        (a.head_dim, a.value_dim, a.rope.rotary_dim, a.rope.theta)
        for a in attentions
        if isinstance(a, AttentionConfig) and a.rope is not None
    }
    ((head_dim, value_dim, rotary_dim, theta),) = widths
    return {
        "context_length": config.max_positions,
        "embedding_length": config.n_channels,
        "block_count": len(config.layers),
        "feed_forward_length": [f.n_neurons for f in ffns if isinstance(f, FfnConfig)],
        "attention.head_count": [a.n_heads for a in attentions if isinstance(a, AttentionConfig)],
        "attention.head_count_kv": [
            a.n_kv_heads for a in attentions if isinstance(a, AttentionConfig)
        ],
        "attention.key_length": head_dim,
        "attention.value_length": value_dim,
        "attention.layer_norm_rms_epsilon": float(config.norm_eps),
        "rope.dimension_count": rotary_dim,
        "rope.freq_base": float(theta),
    }


def _stored_rows(checkpoint: Checkpoint, name: str) -> Array:
    values = checkpoint.read_f32(name)
    parts = name.split(".")
    if parts[0] == "layers" and parts[2] == "attention" and parts[3] in ("q", "k"):
        attention = checkpoint.config.layers[int(parts[1])].attention
        assert isinstance(attention, AttentionConfig)
        assert attention.rope is not None
        heads = attention.n_heads if parts[3] == "q" else attention.n_kv_heads
        values = interleave(values, heads, attention.rope.rotary_dim)
    return values


def add_value(writer: GGUFWriter, key: str, value: Any) -> None:
    """Add metadata of the type that the value has; whole numbers as 32 bits unsigned."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
