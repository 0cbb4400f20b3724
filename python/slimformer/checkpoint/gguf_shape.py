"""The metadata of a GGUF file that say a model's shape, for any described family."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf.constants import GGMLQuantizationType

from slimformer.checkpoint.families import Family
from slimformer.checkpoint.families.family import GgufLack
from slimformer.checkpoint.families.metadata import (
    ATTENTION_CAP,
    CAUSAL,
    EXPERTS,
    LOGIT_CAP,
    LONG_ROPE_FACTORS,
    PARALLEL,
    POOLING,
    ROPE_FACTORS,
    SHORT_ROPE_FACTORS,
    TOP_K,
    WINDOW,
    WINDOW_BASE,
)
from slimformer.checkpoint.families.rope_scaling import rope_scaling_to_gguf
from slimformer.checkpoint.fields import Fields
from slimformer.checkpoint.gguf_header import GgufFile, GgufTensor
from slimformer.checkpoint.layout import gguf_layout
from slimformer.config import (
    AttentionConfig,
    FfnConfig,
    LayerConfig,
    LinkConfig,
    Llama3RopeScaling,
    LongRopeScaling,
    ModelConfig,
    RopeConfig,
    RoutedFfnConfig,
)
from slimformer.errors import SlimformerError

Settings = dict[str, Any]

POOLING_MEAN = 1
"""What llama.cpp does where nobody asks for another pooling."""


@dataclasses.dataclass(frozen=True)
class GgufShape:
    """A shape as GGUF says it.

    ``settings`` are metadata with the architecture's prefix: integers, floats, strings, booleans
    and lists of integers, one a layer. ``tensors`` are parts of the shape that are kept as tensors.
    """

    settings: Mapping[str, Any]
    tensors: Mapping[str, npt.NDArray[np.float32]]


def gguf_shape(family: Family, config: ModelConfig) -> GgufShape | None:
    """The shape in the words of a family, ``None`` for one that they cannot express.

    What they can express is told by reading them again, and by what llama.cpp makes of them: all
    heads have one width, and are rotated whole unless the family says otherwise.
    """
    attentions = [a for layer in config.layers if isinstance(a := layer.attention, AttentionConfig)]
    counts = _counts(family, config.layers)
    if counts is None or not _same_width(family, attentions) or _lacking(family, config):
        return None
    settings = {**_sizes(config, attentions), **counts, **_rotation(family, attentions)}
    settings |= _features(family, config, attentions) | _experts(family, config.layers)
    architecture = family.gguf_architecture
    said = {f"{architecture}.{key}": value for key, value in settings.items() if value is not None}
    shape = GgufShape(said, _rope_factors(family, attentions))
    try:
        same = family.from_gguf(_file(family, config, shape)) == config
    except (SlimformerError, KeyError):
        return None
    return shape if same else None


def _counts(family: Family, layers: Sequence[LayerConfig]) -> Settings | None:
    """Heads, KV heads and neurons: one number for all layers, or one a layer.

    llama.cpp gives heads no width if the first layer has none, and skips the attention of a layer
    without neurons.
    """
    counts = [_counts_of(layer) for layer in layers]
    if not counts:
        return None
    columns: list[Any] = [list(column) for column in zip(*counts, strict=True)]
    if family.gguf_ragged:
        if columns[0][0] == 0 or 0 in columns[2]:
            return None
    elif len(set(counts)) != 1 or 0 in counts[-1]:
        return None
    else:
        columns = list(counts[-1])
    names = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
    return dict(zip(names, columns, strict=True))


def _counts_of(layer: LayerConfig) -> tuple[int, int, int]:
    """A link in place of an attention is a head without KV heads."""
    neurons = layer.ffn.n_neurons if isinstance(layer.ffn, FfnConfig) else 0
    if isinstance(layer.ffn, RoutedFfnConfig):
        neurons = min(layer.ffn.experts)
    if isinstance(layer.attention, AttentionConfig):
        return layer.attention.n_heads, layer.attention.n_kv_heads, neurons
    return int(isinstance(layer.attention, LinkConfig)), 0, neurons


def _experts(family: Family, layers: Sequence[LayerConfig]) -> Settings:
    """How many experts there are and run, and how wide they are."""
    experts = family.description.blocks.experts
    ffns = [f for layer in layers if isinstance(f := layer.ffn, RoutedFfnConfig)]
    if experts is None or not ffns:
        return {}
    ffn = ffns[-1]
    return {
        EXPERTS: len(ffn.experts),
        TOP_K: ffn.top_k,
        experts.gguf_neurons: min(ffn.experts),
    }


def _same_width(family: Family, attentions: Sequence[AttentionConfig]) -> bool:
    widths = {width for a in attentions for width in (a.head_dim, a.value_dim)}
    ropes = family.description.blocks.rope
    if ropes is not None and ropes.share_key is None:
        widths |= {a.rope.rotary_dim for a in attentions if a.rope is not None}
    return len(widths) == 1


def _lacking(family: Family, config: ModelConfig) -> bool:
    """Whether the shape has something that llama.cpp lacks for this family."""
    attentions = [a for layer in config.layers if isinstance(a := layer.attention, AttentionConfig)]
    ffns = [f for layer in config.layers if isinstance(f := layer.ffn, FfnConfig)]
    has: dict[GgufLack, bool] = {
        "width": any(a.n_heads * a.head_dim != config.n_channels for a in attentions),
        "groups": any(a.n_heads != a.n_kv_heads for a in attentions),
        "window": any(a.window is not None for a in attentions),
        "attention_bias": any(a.qkv_bias or a.output_bias for a in attentions),
        "ffn_bias": any(ffn.bias for ffn in ffns),
    }
    return any(has[lack] for lack in family.gguf_lacks)


def _sizes(config: ModelConfig, attentions: Sequence[AttentionConfig]) -> Settings:
    width = attentions[-1].head_dim
    norm = "layer_norm" if config.norm == "layer" else "layer_norm_rms"
    return {
        "vocab_size": config.vocab_size,
        "context_length": config.max_positions,
        "embedding_length": config.n_channels,
        "block_count": len(config.layers),
        "attention.key_length": width,
        "attention.value_length": width,
        f"attention.{norm}_epsilon": config.norm_eps,
    }


def _rotation(family: Family, attentions: Sequence[AttentionConfig]) -> Settings:
    """The rotation of layers that see all, and the base of those with a window."""
    rope = _main_rope(family, attentions)
    if rope is None:
        return {}
    settings: Settings = {"rope.dimension_count": rope.rotary_dim, "rope.freq_base": rope.theta}
    scaling = rope_scaling_to_gguf(rope.scaling)
    settings |= {f"rope.{key}": value for key, value in scaling.items()}
    if _has_window_base(family):
        windowed = [a.rope.theta for a in attentions if a.window is not None and a.rope is not None]
        settings[WINDOW_BASE] = next(iter(windowed), None)
    return settings


def _main_rope(family: Family, attentions: Sequence[AttentionConfig]) -> RopeConfig | None:
    of_windows = _has_window_base(family)
    ropes = [a.rope for a in attentions if not (of_windows and a.window is not None)]
    return next((rope for rope in ropes if rope is not None), None)


def _has_window_base(family: Family) -> bool:
    ropes = family.description.blocks.rope
    return ropes is not None and ropes.window_key is not None


def _rope_factors(
    family: Family, attentions: Sequence[AttentionConfig]
) -> dict[str, npt.NDArray[np.float32]]:
    """What frequencies are divided by; Llama 3's scaling and LongRoPE are kept in that form."""
    rope = _main_rope(family, attentions)
    if rope is None:
        return {}
    if isinstance(rope.scaling, LongRopeScaling):
        return {
            SHORT_ROPE_FACTORS: np.asarray(rope.scaling.short_factors, np.float32),
            LONG_ROPE_FACTORS: np.asarray(rope.scaling.long_factors, np.float32),
        }
    if not isinstance(rope.scaling, Llama3RopeScaling):
        return {}
    plain = RopeConfig(rope.rotary_dim, rope.theta).inverse_frequencies().astype(np.float64)
    return {ROPE_FACTORS: (plain / rope.inverse_frequencies()).astype(np.float32)}


def _features(
    family: Family, config: ModelConfig, attentions: Sequence[AttentionConfig]
) -> Settings:
    """What only some families say."""
    keys, blocks = family.description.keys, family.description.blocks
    settings: Settings = {}
    if blocks.windows is not None:
        windows = [a.window for a in attentions if a.window is not None]
        settings[WINDOW] = next(iter(windows), None)
    if keys.attention_cap is not None:
        settings[ATTENTION_CAP] = attentions[-1].soft_cap
    if keys.logit_cap is not None:
        settings[LOGIT_CAP] = config.logit_soft_cap
    if isinstance(blocks.parallel, str):
        settings[PARALLEL] = any(layer.parallel for layer in config.layers)
    if not config.causal:
        settings |= {CAUSAL: False, POOLING: POOLING_MEAN}
    return settings


def _file(family: Family, config: ModelConfig, shape: GgufShape) -> GgufFile:
    """A file of that shape as far as readers of shapes look at it."""
    values = {
        key: np.array(value) if isinstance(value, list) else value
        for key, value in shape.settings.items()
    }
    kind = GGMLQuantizationType.F32
    tensors = {
        stored.name: GgufTensor(stored.name, stored.shape, kind, 0, 0)
        for stored in gguf_layout(family, config)
    }
    data = b""
    for name, factors in shape.tensors.items():
        tensors[name] = GgufTensor(name, factors.shape, kind, len(data), factors.nbytes)
        data += factors.tobytes()
    return GgufFile(Path("gguf"), Fields("gguf", values), tensors, data)
