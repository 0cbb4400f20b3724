"""The plain numpy model: what every other forward pass is measured against.

Written for reading, not for speed: no cache, no packing, one sequence, every layer as in the
paper. It knows links, absent sub-blocks, ragged heads and masks because the shapes say so.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from slimformer.config import (
    AttentionConfig,
    FfnConfig,
    LinkConfig,
    ModelConfig,
    RopeConfig,
    RoutedFfnConfig,
)

Array = npt.NDArray[Any]
Read = Callable[[str], Array]
"""Gives the values of a tensor by its name, e.g. ``checkpoint.read_f32``."""


@dataclasses.dataclass(frozen=True)
class ReferenceMask:
    """Which structures run; ``heads`` and the like list what is kept, by layer (and expert)."""

    skip_attention: tuple[int, ...] = ()
    skip_ffn: tuple[int, ...] = ()
    exit_after: int | None = None
    heads: Mapping[int, Sequence[int]] = dataclasses.field(default_factory=dict)
    value_dims: Mapping[int, Sequence[int]] = dataclasses.field(default_factory=dict)
    neurons: Mapping[int, Sequence[int]] = dataclasses.field(default_factory=dict)
    experts: Mapping[int, Sequence[int]] = dataclasses.field(default_factory=dict)
    expert_neurons: Mapping[int, Mapping[int, Sequence[int]]] = dataclasses.field(
        default_factory=dict
    )


def forward(
    config: ModelConfig,
    read: Read,
    tokens: Sequence[int],
    mask: ReferenceMask | None = None,
    dtype: Any = np.float64,
    captured: dict[tuple[int, str], Array] | None = None,
) -> Array:
    """Logits of every position, [n_tokens, vocab_size].

    ``captured`` is filled with what flows past the engine's taps, by (layer, site).
    """
    mask = mask or ReferenceMask()

    def tensor(name: str) -> Array:
        return np.asarray(read(name), dtype=dtype)

    def norm(x: Array, name: str, divisor: int = config.norm_divisor) -> Array:
        if config.norm == "layer":
            x = x - x.mean(axis=-1, keepdims=True)
        mean_square = np.sum(x * x, axis=-1, keepdims=True) / divisor
        normed: Array = x / np.sqrt(mean_square + dtype(config.norm_eps))
        normed = normed * (tensor(f"{name}.weight") + dtype(config.norm_offset))
        return normed + tensor(f"{name}.bias") if config.norm == "layer" else normed

    def enter(sub_block: Any, stream: Array, prefix: str) -> Array:
        before = sub_block.norm_place in ("before", "both")
        return norm(stream, f"{prefix}.norm") if before else stream

    def leave(sub_block: Any, stream: Array, output: Array, prefix: str) -> Array:
        if sub_block.norm_place == "before":
            return stream + output
        if sub_block.norm_place == "stream":
            return norm(stream + output, f"{prefix}.post_norm")
        return stream + norm(output, f"{prefix}.post_norm")

    def tap(layer: int, site: str, value: Array) -> None:
        if captured is not None:
            captured[layer, site] = value.copy()

    def linked(config: LinkConfig, stream: Array, layer: int, place: str) -> Array:
        prefix = f"layers.{layer}.{place}"
        if config.kind == "constant":
            return tensor(f"{prefix}.link.bias")
        x = enter(config, stream, prefix)
        tap(layer, f"{place}_normed", x)
        return link(config, prefix, tensor, x)

    hidden = tensor("embedding.weight")[np.asarray(tokens)]  # [n_tokens, n_channels]
    hidden = hidden * dtype(config.embedding_scale)
    if config.learned_positions:
        first = config.position_offset
        hidden = hidden + tensor("positions.weight")[first : first + len(hidden)]
    if config.token_types:
        hidden = hidden + tensor("token_types.weight")[0]
    if config.embedding_norm:
        hidden = norm(hidden, "embedding_norm")
    for index, layer in enumerate(config.layers):
        if mask.exit_after is not None and index > mask.exit_after:
            break
        tap(index, "attention_input", hidden)
        entry = hidden
        attention = None if index in mask.skip_attention else layer.attention
        if isinstance(attention, LinkConfig):
            hidden = hidden + linked(attention, hidden, index, "attention")
        elif attention is not None:
            prefix = f"layers.{index}.attention"
            x = enter(attention, hidden, prefix)
            tap(index, "attention_normed", x)
            kept = mask.heads.get(index)
            seen = visible(len(x), attention.window, config.causal)
            heads = attention_heads(attention, prefix, tensor, norm, x, seen, kept)
            heads = keep_heads(attention, heads, kept, mask.value_dims.get(index))
            tap(index, "attention_heads", heads)
            output = linear(tensor, f"{prefix}.o", heads, attention.output_bias)
            hidden = leave(attention, hidden, output, prefix)
        tap(index, "ffn_input", hidden)
        ffn = None if index in mask.skip_ffn else layer.ffn
        read_by_ffn = entry if layer.parallel else hidden
        if isinstance(ffn, LinkConfig):
            hidden = hidden + linked(ffn, read_by_ffn, index, "ffn")
        elif ffn is not None:
            prefix = f"layers.{index}.ffn"
            x = enter(ffn, read_by_ffn, prefix)
            tap(index, "ffn_normed", x)
            if isinstance(ffn, RoutedFfnConfig):
                added, neurons = experts(
                    ffn,
                    prefix,
                    tensor,
                    x,
                    mask.experts.get(index),
                    mask.expert_neurons.get(index, {}),
                )
                tap(index, "ffn_neurons", neurons)
                tap(index, "ffn_experts", np.linalg.norm(added, axis=-1).T)
                hidden = leave(ffn, hidden, added.sum(axis=0), prefix)
            else:
                neurons = ffn_neurons(ffn, prefix, tensor, x)
                kept = mask.neurons.get(index)
                if kept is not None:
                    neurons = neurons * np.isin(np.arange(ffn.n_neurons), kept)
                tap(index, "ffn_neurons", neurons)
                output = linear(tensor, f"{prefix}.down", neurons, ffn.bias)
                hidden = leave(ffn, hidden, output, prefix)
        tap(index, "layer_output", hidden)
    if config.final_norm:
        hidden = norm(hidden, "final_norm")
    logits: Array = hidden @ tensor("embedding.weight" if config.tied_head else "head.weight").T
    return soft_cap(logits, config.logit_soft_cap)


def linear(tensor: Read, name: str, x: Array, bias: bool) -> Array:
    """``x W' + b``, [n_tokens, outputs]."""
    y: Array = x @ tensor(f"{name}.weight").T
    return y + tensor(f"{name}.bias") if bias else y


def link(config: LinkConfig, prefix: str, tensor: Read, x: Array) -> Array:
    """The linear map that stands in for a sub-block, [n_tokens, n_channels]."""
    if config.kind == "full":
        return x @ tensor(f"{prefix}.link.weight").T
    if config.kind == "diagonal":
        return x * tensor(f"{prefix}.link.weight")
    return (x @ tensor(f"{prefix}.link.down").T) @ tensor(f"{prefix}.link.up").T


def visible(n_tokens: int, window: int | None, causal: bool) -> Array:
    """Which positions (columns) each position (row) sees."""
    past = np.arange(n_tokens)[:, None] - np.arange(n_tokens)
    return (past >= 0) & (past < (window or n_tokens)) | (not causal)


def soft_cap(x: Array, cap: float | None) -> Array:
    """``cap tanh(x / cap)``, where there is a cap."""
    return x if cap is None else np.asarray(cap * np.tanh(x / cap), x.dtype)


def attention_heads(
    config: AttentionConfig,
    prefix: str,
    tensor: Read,
    norm: Callable[..., Array],
    x: Array,
    seen: Array,
    kept: Sequence[int] | None,
) -> Array:
    """Input of the output projection, [n_tokens, n_heads * value_dim].

    Heads that are not ``kept`` count only where all are normalised together.
    """
    n_tokens = len(x)
    q = linear(tensor, f"{prefix}.q", x, config.qkv_bias)
    k = linear(tensor, f"{prefix}.k", x, config.qkv_bias)
    v = linear(tensor, f"{prefix}.v", x, config.qkv_bias)
    if config.qk_norm == "width":
        stays = range(config.n_heads) if kept is None else kept
        reads = [config.q_to_kv[head] for head in stays]
        q = q * np.repeat(np.isin(np.arange(config.n_heads), stays), config.head_dim)
        k = k * np.repeat(np.isin(np.arange(config.n_kv_heads), reads), config.head_dim)
        q = norm(q, f"{prefix}.q_norm", config.q_norm_divisor)
        k = norm(k, f"{prefix}.k_norm", config.k_norm_divisor)
    q = q.reshape(n_tokens, config.n_heads, config.head_dim)
    k = k.reshape(n_tokens, config.n_kv_heads, config.head_dim)
    v = v.reshape(n_tokens, config.n_kv_heads, config.value_dim)
    if config.qk_norm == "head":
        q = norm(q, f"{prefix}.q_norm", config.head_dim)
        k = norm(k, f"{prefix}.k_norm", config.head_dim)
    if config.rope is not None:
        q, k = rotate(config.rope, q), rotate(config.rope, k)
    heads = []
    for head, kv in enumerate(config.q_to_kv):
        scores = q[:, head] @ k[:, kv].T * x.dtype.type(config.scale)
        scores = np.where(seen, soft_cap(scores, config.soft_cap), -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        heads.append(weights / weights.sum(axis=-1, keepdims=True) @ v[:, kv])
    return np.concatenate(heads, axis=-1)


def keep_heads(
    config: AttentionConfig,
    heads: Array,
    kept: Sequence[int] | None,
    entries: Sequence[int] | None,
) -> Array:
    """Zeroes the outputs of masked heads, and masked entries of all."""
    all_heads, all_entries = np.arange(config.n_heads), np.arange(config.value_dim)
    flags = np.isin(all_heads, all_heads if kept is None else kept)
    own = np.isin(all_entries, all_entries if entries is None else entries)
    return heads * np.outer(flags, own).reshape(-1)


def rotate(rope: RopeConfig, x: Array) -> Array:
    """Rotary position embedding of [n_tokens, heads, head_dim], positions from 0.

    The angle is rounded to float32 as every engine does, so that what is compared is the
    rotation and not the rounding of large angles.
    """
    positions = np.arange(len(x), dtype=np.float32)
    angles = positions[:, None] * rope.inverse_frequencies(len(x))[None, :]
    cosine = rope.amplitude * np.cos(angles.astype(np.float64)).astype(x.dtype)[:, None, :]
    sine = rope.amplitude * np.sin(angles.astype(np.float64)).astype(x.dtype)[:, None, :]
    half = rope.rotary_dim // 2
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return np.concatenate(
        [first * cosine - second * sine, second * cosine + first * sine, rest], axis=-1
    )


def ffn_neurons(config: FfnConfig, prefix: str, tensor: Read, x: Array) -> Array:
    """Input of the down projection, [n_tokens, n_neurons]."""
    up = linear(tensor, f"{prefix}.up", x, config.bias)
    if not config.gated:
        return ACTIVATIONS[config.activation](up)
    return ACTIVATIONS[config.activation](linear(tensor, f"{prefix}.gate", x, config.bias)) * up


def experts(
    config: RoutedFfnConfig,
    prefix: str,
    tensor: Read,
    x: Array,
    kept: Sequence[int] | None,
    kept_neurons: Mapping[int, Sequence[int]],
) -> tuple[Array, Array]:
    """What each expert adds, [n_experts, n_tokens, n_channels], and the weighted neurons of all.

    The router chooses among the experts that are ``kept``.
    """
    logits = x @ tensor(f"{prefix}.router.weight").T  # [n_tokens, n_experts]
    if kept is not None:
        logits = np.where(np.isin(np.arange(len(config.experts)), kept), logits, -np.inf)
    highest = np.argsort(-logits, axis=-1, kind="stable")[:, : config.top_k]
    chosen = np.zeros(logits.shape, bool)
    np.put_along_axis(chosen, highest, values=True, axis=-1)
    counted = np.where(chosen, logits, -np.inf) if config.softmax_over == "chosen" else logits
    gates = np.exp(counted - counted.max(axis=-1, keepdims=True))
    gates = np.where(chosen, gates / gates.sum(axis=-1, keepdims=True), 0)
    added, neurons = [], []
    for index, width in enumerate(config.experts):
        name = f"{prefix}.experts.{index}"
        own = ffn_neurons(config.expert(index), name, tensor, x) * gates[:, [index]]
        own = own * np.isin(np.arange(width), kept_neurons.get(index, range(width)))
        neurons.append(own)
        added.append(linear(tensor, f"{name}.down", own, bias=False))
    return np.stack(added), np.concatenate(neurons, axis=-1)


def gelu(x: Array) -> Array:
    """``x`` times the normal distribution's mass below it."""
    below = 0.5 * np.vectorize(math.erfc, otypes=[np.float64])(-x / math.sqrt(2))
    return np.asarray(x * below, x.dtype)


def gelu_tanh(x: Array) -> Array:
    """Its approximation by Hendrycks and Gimpel 2016."""
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return np.asarray(0.5 * x * (1 + np.tanh(inner)), x.dtype)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": lambda x: np.asarray(x / (1 + np.exp(-x)), x.dtype),
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu": lambda x: np.maximum(x, 0),
}
