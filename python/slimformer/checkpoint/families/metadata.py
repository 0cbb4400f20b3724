"""Shapes from the metadata of GGUF files, for any described family."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import numpy as np

from slimformer.checkpoint.families.description import ACTIVATIONS, Blocks, Description
from slimformer.checkpoint.families.rope_scaling import (
    ATTENTION_FACTOR,
    BETA_FAST,
    BETA_SLOW,
    GgufRopeFactors,
    rope_from_gguf,
)
from slimformer.checkpoint.families.settings import MAX_HEADS, grouped
from slimformer.checkpoint.fields import Fields
from slimformer.checkpoint.gguf_header import GgufFile
from slimformer.config import (
    MAX_DIMENSION,
    MAX_LAYERS,
    Activation,
    AttentionConfig,
    FfnConfig,
    LayerConfig,
    LinkConfig,
    ModelConfig,
    RopeConfig,
    RoutedFfnConfig,
)
from slimformer.errors import FormatError, UnsupportedModelError
from slimformer.ffn import MAX_EXPERTS

ROPE_FACTORS = "rope_freqs.weight"
SHORT_ROPE_FACTORS, LONG_ROPE_FACTORS = "rope_factors_short.weight", "rope_factors_long.weight"
ALL_ROPE_FACTORS = (ROPE_FACTORS, SHORT_ROPE_FACTORS, LONG_ROPE_FACTORS)
"""What each rotary frequency is divided by; part of the shape."""

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "use_parallel_residual": (False,),
    "attention.sliding_window": (0,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "rope.scaling.yarn_ext_factor": (1.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
}
"""Settings that change the computation, with the values that leave it alone, for every family
that does not read them."""

CAUSAL, POOLING = "attention.causal", "pooling_type"

_READ = frozenset(
    (
        *("vocab_size", "context_length", "embedding_length", "block_count"),
        *("feed_forward_length", "tensor_data_layout"),
        *("attention.head_count", "attention.head_count_kv", "attention.key_length"),
        *("attention.value_length", "attention.scale"),
        *("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"),
        *("rope.dimension_count", "rope.freq_base", "rope.scale_linear", "rope.scaling.type"),
        *("rope.scaling.factor", "rope.scaling.original_context_length"),
        *("rope.scaling.finetuned", CAUSAL, POOLING),
        *(f"rope.{key}" for key in (ATTENTION_FACTOR, BETA_FAST, BETA_SLOW)),
    )
)
"""Settings that every family reads, or that say nothing about the shape."""

WINDOW, WINDOW_BASE = "attention.sliding_window", "rope.freq_base_swa"
ATTENTION_CAP, LOGIT_CAP = "attn_logit_softcapping", "final_logit_softcapping"
PARALLEL = "use_parallel_residual"
EXPERTS, TOP_K = "expert_count", "expert_used_count"


def read_metadata(
    name: str, architecture: str, description: Description, file: GgufFile, *, ragged: bool = False
) -> ModelConfig:
    """The shape of family ``name`` that a file of that architecture describes.

    Where it is ``ragged``, a layer may be without heads (no attention), without KV heads only (a
    full link in place of attention) or without neurons.
    """
    settings = _Settings(file.metadata, architecture, description)
    blocks = description.blocks
    channels = settings.dimension("embedding_length")
    n_layers = settings.dimension("block_count", limit=MAX_LAYERS)
    least = 0 if ragged else 1
    heads = settings.per_layer("attention.head_count", n_layers, least, MAX_HEADS)
    kv_heads = heads
    if "attention.head_count_kv" in settings:
        kv_heads = settings.per_layer("attention.head_count_kv", n_layers, least, MAX_HEADS)
    length = "feed_forward_length" if blocks.experts is None else blocks.experts.gguf_neurons
    neurons = settings.per_layer(length, n_layers, least, MAX_DIMENSION)
    windows = _windows(settings, blocks, n_layers)
    kind = "layer_norm" if blocks.norm == "layer" else "layer_norm_rms"
    layers = []
    seen: dict[tuple[Any, ...], AttentionConfig] = {}
    for index in range(n_layers):
        prefix = f"blk.{index}"
        rotated = blocks.rope is not None and not (blocks.rope.skips and (index + 1) % 4 == 0)
        key = (
            *(heads[index], kv_heads[index], windows[index], rotated),
            _bias(file, blocks.qkv_bias, f"{prefix}.attn_q", f"{prefix}.attn_qkv"),
            _bias(file, blocks.output_bias, f"{prefix}.attn_output"),
        )
        attention: AttentionConfig | LinkConfig | None = None
        if heads[index] and kv_heads[index]:
            if key not in seen:
                seen[key] = _attention(file, settings, blocks, channels, *key)
            attention = seen[key]
        elif heads[index]:
            attention = LinkConfig("full")
        ffn = _ffn(file, settings, blocks, max(1, neurons[index]), prefix)
        parallel = _parallel(settings, blocks)
        layers.append(LayerConfig(attention, ffn if neurons[index] else None, parallel))
    return ModelConfig(
        family=name,
        vocab_size=_vocab_size(file, architecture),
        n_channels=channels,
        norm_divisor=channels,
        norm_eps=settings.number(f"attention.{kind}_epsilon"),
        tied_head="output.weight" not in file.tensors,
        max_positions=settings.dimension("context_length"),
        layers=tuple(layers),
        norm=blocks.norm,
        norm_offset=blocks.norm_offset,
        embedding_scale=channels**0.5 if blocks.scaled_embedding else 1.0,
        learned_positions=blocks.learned_positions,
        position_offset=blocks.position_offset,
        logit_soft_cap=settings.cap(description.keys.logit_cap, LOGIT_CAP),
        causal=blocks.causal,
        token_types=_token_types(file, blocks),
        embedding_norm=blocks.embedding_norm,
        final_norm=blocks.final_norm,
    )


def has_experts(metadata: Fields) -> bool:
    """Whether the layers of a file consist of experts: its architecture does not tell."""
    architecture = metadata.text("general.architecture")
    return metadata.raw(f"{architecture}.{EXPERTS}") not in (None, 0)


@dataclasses.dataclass(frozen=True)
class _Settings:
    """The settings of one architecture, without its prefix.

    Every setting must be one that is read, or leave the computation alone.
    """

    metadata: Fields
    architecture: str
    description: Description

    def __post_init__(self) -> None:
        causal = self.description.blocks.causal
        if self.metadata.boolean(self.key(CAUSAL), True) != causal:
            self.metadata.fail(self.key(CAUSAL), str(causal).lower(), str(not causal).lower())
        read = _READ | self._read_by_family()
        for key in self.metadata:
            prefix, _, setting = key.partition(".")
            if prefix != self.architecture or setting in read:
                continue
            value = self.metadata.raw(key)
            if not isinstance(value, (int, float)) or value not in _NEUTRAL.get(setting, ()):
                raise UnsupportedModelError(
                    f"{self.metadata.where}: {key}: {value!r:.60} does not run here"
                )

    def _read_by_family(self) -> set[str]:
        keys, blocks = self.description.keys, self.description.blocks
        read = set()
        if blocks.windows is not None:
            read |= {WINDOW, f"{WINDOW}_pattern"}
        if blocks.rope is not None and blocks.rope.window_key is not None:
            read.add(WINDOW_BASE)
        if keys.attention_cap is not None:
            read |= {ATTENTION_CAP, LOGIT_CAP}
        if isinstance(blocks.parallel, str):
            read.add(PARALLEL)
        if blocks.experts is not None:
            read |= {EXPERTS, TOP_K, blocks.experts.gguf_neurons}
        return read

    def key(self, setting: str) -> str:
        return f"{self.architecture}.{setting}"

    def __contains__(self, setting: str) -> bool:
        return self.key(setting) in self.metadata

    def dimension(
        self, setting: str, default: int | None = None, *, limit: int = MAX_DIMENSION
    ) -> int:
        return self.metadata.dimension(self.key(setting), default, limit=limit)

    def number(self, setting: str, default: float | None = None) -> float:
        return self.metadata.number(self.key(setting), default)

    def cap(self, key: str | None, setting: str) -> float | None:
        """A soft cap, in families that have such a setting; 0 stands for none."""
        return None if key is None else self.number(setting, 0.0) or None

    def per_layer(self, setting: str, n_layers: int, least: int, limit: int) -> list[int]:
        """A setting that is one number for all layers or an array with one for each."""
        key = self.key(setting)
        if not isinstance(self.metadata.raw(key), np.ndarray):
            return [self.metadata.dimension(key, limit=limit)] * n_layers
        values = self.metadata.array(key)
        if values.dtype.kind not in "iu" or len(values) != n_layers:
            self.metadata.fail(key, f"an integer or {n_layers} of them, one a layer", values)
        if values.min() < least or values.max() > limit:
            self.metadata.fail(key, f"integers from {least} to {limit}", values)
        return [int(value) for value in values]


def _ffn(
    file: GgufFile, settings: _Settings, blocks: Blocks, neurons: int, prefix: str
) -> FfnConfig | RoutedFfnConfig:
    activation = cast(Activation, ACTIVATIONS[blocks.activation])
    if blocks.experts is not None:
        return RoutedFfnConfig(
            experts=(neurons,) * settings.dimension(EXPERTS, limit=MAX_EXPERTS),
            top_k=settings.dimension(TOP_K),
            softmax_over=blocks.experts.gguf_softmax_over,
            norm_place=blocks.norm_place,
            activation=activation,
        )
    bias = _bias(file, blocks.ffn_bias, f"{prefix}.ffn_down")
    return FfnConfig(neurons, bias, blocks.norm_place, activation, blocks.gated)


def _token_types(file: GgufFile, blocks: Blocks) -> int:
    """Rows of the table of token types, which not every encoder has."""
    table = file.tensors.get("token_types.weight") if blocks.token_types else None
    return 0 if table is None else table.shape[0]


def _bias(file: GgufFile, source: bool | str, *names: str) -> bool:
    """Where settings of other formats say it, here the tensors do."""
    if isinstance(source, bool):
        return source
    return any(f"{name}.bias" in file.tensors for name in names)


def _parallel(settings: _Settings, blocks: Blocks) -> bool:
    if isinstance(blocks.parallel, bool):
        return blocks.parallel
    return settings.metadata.boolean(settings.key(PARALLEL), True)


def _windows(settings: _Settings, blocks: Blocks, n_layers: int) -> list[int | None]:
    """The window of each layer: which have one follows from the family."""
    windows = blocks.windows
    if windows is None or settings.metadata.raw(settings.key(WINDOW)) in (None, 0):
        return [None] * n_layers
    width = settings.dimension(WINDOW)
    pattern = settings.metadata.raw(settings.key(f"{WINDOW}_pattern"))
    if isinstance(pattern, np.ndarray) and len(pattern) == n_layers:
        return [width if windowed else None for windowed in pattern.tolist()]
    every = settings.dimension(f"{WINDOW}_pattern", windows.full_every or n_layers + 1)
    return [None if (layer + 1) % every == 0 else width for layer in range(n_layers)]


def _vocab_size(file: GgufFile, architecture: str) -> int:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise FormatError(f"{file.path}: tensor token_embd.weight: expected, found none")
    rows = embedding.shape[0]
    claimed = file.metadata.integer(f"{architecture}.vocab_size", rows)
    if claimed != rows:
        raise FormatError(
            f"{file.path}: tensor token_embd.weight: expected {claimed} rows as "
            f"{architecture}.vocab_size says, found {rows}"
        )
    return rows


def _attention(
    file: GgufFile,
    settings: _Settings,
    blocks: Blocks,
    channels: int,
    n_heads: int,
    n_kv_heads: int,
    window: int | None,
    rotated: bool,
    qkv_bias: bool,
    output_bias: bool,
) -> AttentionConfig:
    head_dim = _head_dim(settings, channels, n_heads)
    value_dim = settings.dimension("attention.value_length", head_dim)
    width = blocks.qk_norm == "width"
    return AttentionConfig(
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        value_dim=value_dim,
        q_to_kv=grouped(n_heads, n_kv_heads, str(file.path)),
        scale=settings.number("attention.scale", 0.0) or head_dim**-0.5,
        rope=_rope(file, settings, blocks, head_dim, window) if rotated else None,
        qkv_bias=qkv_bias,
        output_bias=output_bias,
        norm_place=blocks.norm_place,
        window=window,
        soft_cap=settings.cap(settings.description.keys.attention_cap, ATTENTION_CAP),
        qk_norm=blocks.qk_norm,
        q_norm_divisor=n_heads * head_dim if width else None,
        k_norm_divisor=n_kv_heads * head_dim if width else None,
    )


def _head_dim(settings: _Settings, channels: int, n_heads: int) -> int:
    head_counts = settings.metadata.raw(settings.key("attention.head_count"))
    if "attention.key_length" in settings:
        return settings.dimension("attention.key_length")
    if isinstance(head_counts, np.ndarray) and len(set(head_counts.tolist())) > 1:
        settings.metadata.fail(
            settings.key("attention.key_length"),
            "the width of a head, since the number of heads differs between layers",
            None,
        )
    return max(1, channels // n_heads)


def _rope(
    file: GgufFile, settings: _Settings, blocks: Blocks, head_dim: int, window: int | None
) -> RopeConfig:
    """Layers with a window have a base of their own, unscaled, in families that say so."""
    assert blocks.rope is not None
    rotary_dim = settings.dimension("rope.dimension_count", head_dim)
    if window is not None and blocks.rope.window_key is not None:
        return RopeConfig(rotary_dim, settings.number(WINDOW_BASE, 10000.0))
    found = (_rope_factors(file, name, rotary_dim) for name in ALL_ROPE_FACTORS)
    factors = GgufRopeFactors(*found)
    return rope_from_gguf(
        settings.metadata, settings.architecture, rotary_dim, factors, blocks.rope.theta
    )


def _rope_factors(file: GgufFile, name: str, rotary_dim: int) -> np.ndarray[Any, Any] | None:
    tensor = file.tensors.get(name)
    if tensor is None:
        return None
    if tensor.shape != (rotary_dim // 2,) or tensor.quantisation.name != "F32":
        raise FormatError(
            f"{file.path}: tensor {name}: expected F32 of shape ({rotary_dim // 2},), "
            f"found {tensor.quantisation.name} of shape {tensor.shape}"
        )
    return file.tensor_bytes(tensor).view("<f4")
