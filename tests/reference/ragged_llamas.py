"""Random models as pruning a Llama leaves them: ragged, with every structure that can go."""

from __future__ import annotations

import dataclasses
from typing import get_args

import numpy as np

from reference.models import random_checkpoint, random_rope, some_pairs
from slimformer.checkpoint import Checkpoint
from slimformer.config import (
    AttentionConfig,
    FfnConfig,
    LayerConfig,
    LinkConfig,
    LinkKind,
    ModelConfig,
    RopeConfig,
    RoutedFfnConfig,
)


def ragged_llama(
    seed: int, *, links: bool = True, bias: bool = True, tokenizer: bool = True
) -> Checkpoint:
    """A model of one to five layers that once was a Llama.

    Query heads are uneven on their KV heads, sub-blocks are absent or links, some heads are half
    as wide, values are narrower, and channels are gone.
    """
    rng = np.random.default_rng(seed)
    head_dim = 4 * int(rng.integers(2, 6))
    rope = random_rope(rng, head_dim)
    n_channels = 4 * int(rng.integers(6, 12))
    layers = [
        LayerConfig(
            _attention(rng, rope, bias=bias and bool(rng.integers(2))),
            FfnConfig(int(rng.integers(1, 60)), bias=bias and bool(rng.integers(2))),
        )
        for _ in range(int(rng.integers(1, 6)))
    ]
    replaced = []
    for layer in layers:
        attention: AttentionConfig | LinkConfig | None = layer.attention
        ffn: FfnConfig | RoutedFfnConfig | LinkConfig | None = layer.ffn
        if rng.random() < 0.35:
            attention = _stand_in(rng, links=links)
        if rng.random() < 0.35:
            ffn = _stand_in(rng, links=links)
        replaced.append(LayerConfig(attention, ffn))
    config = ModelConfig(
        family="llama",
        vocab_size=300,
        n_channels=n_channels,
        norm_divisor=n_channels + int(rng.integers(0, 2)) * 4,
        norm_eps=1e-5,
        tied_head=bool(rng.integers(2)),
        max_positions=256,
        layers=tuple(replaced),
    )
    return random_checkpoint(config, seed, tokenizer=tokenizer)


def _stand_in(rng: np.random.Generator, *, links: bool) -> LinkConfig | None:
    if not links or rng.random() >= 0.6:
        return None
    kinds: tuple[LinkKind, ...] = get_args(LinkKind)
    kind = kinds[int(rng.integers(len(kinds)))]
    return LinkConfig(kind, rank=3 if kind == "low_rank" else None)


def _attention(rng: np.random.Generator, rope: RopeConfig, *, bias: bool) -> AttentionConfig:
    n_kv_heads = int(rng.integers(1, 4))
    q_to_kv = [*range(n_kv_heads), *rng.integers(0, n_kv_heads, size=int(rng.integers(0, 4)))]
    rng.shuffle(q_to_kv)
    if rope.rotary_dim % 4 == 0 and rope.scaling is None and rng.random() < 0.2:
        rope = dataclasses.replace(rope, rotary_dim=rope.rotary_dim // 2)
    head_dim = rope.rotary_dim
    attention = AttentionConfig(
        n_heads=len(q_to_kv),
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        value_dim=head_dim - int(rng.integers(0, 2)),
        q_to_kv=tuple(int(kv) for kv in q_to_kv),
        scale=head_dim**-0.5 * float(rng.choice([1.0, 1.3])),
        rope=rope,
        qkv_bias=bias,
        output_bias=bias and bool(rng.integers(2)),
    )
    left = some_pairs(rng, rope)
    return dataclasses.replace(attention, head_dim=left.rotary_dim, rope=left)
