"""GGUF files of any described family: what converters write for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter

from reference.gguf_files import add_value, finish
from slimformer.checkpoint import Checkpoint
from slimformer.checkpoint.families import by_name
from slimformer.checkpoint.layout import gguf_layout
from slimformer.config import AttentionConfig, FfnConfig, RoutedFfnConfig


def write_family(path: Path, checkpoint: Checkpoint, **settings: Any) -> None:
    """Write a model of uniform layers in float32; ``settings`` replace or add to the metadata."""
    config = checkpoint.config
    family = by_name(config.family, "test")
    architecture = family.gguf_architecture
    assert architecture is not None
    writer = GGUFWriter(path, architecture)
    for key, value in {**metadata(checkpoint), **settings}.items():
        if value is not None:
            add_value(writer, f"{architecture}.{key}", value)
    writer.add_tokenizer_model("none")
    for stored in gguf_layout(family, config):
        values = stored.join(checkpoint.tensors).read()
        writer.add_tensor(stored.name, np.asarray(values, np.float32))
    finish(writer)


def metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """The settings of a model of uniform layers, without the architecture's prefix."""
    config = checkpoint.config
    layers = [(layer.attention, layer.ffn, layer.parallel) for layer in config.layers]
    (attention, ffn, parallel), *_ = layers
    assert isinstance(attention, AttentionConfig)
    assert isinstance(ffn, (FfnConfig, RoutedFfnConfig))
    windows = [a.window for a, _, _ in layers if isinstance(a, AttentionConfig)]
    ropes = [(a.window, a.rope) for a, _, _ in layers if isinstance(a, AttentionConfig) and a.rope]
    kind = "layer_norm" if config.norm == "layer" else "layer_norm_rms"
    settings: dict[str, Any] = {
        "context_length": config.max_positions,
        "embedding_length": config.n_channels,
        "block_count": len(config.layers),
        "vocab_size": config.vocab_size,
        "attention.head_count": attention.n_heads,
        "attention.head_count_kv": attention.n_kv_heads,
        "attention.key_length": attention.head_dim,
        "attention.value_length": attention.value_dim,
        f"attention.{kind}_epsilon": float(config.norm_eps),
        "attention.sliding_window": next((w for w in windows if w is not None), None),
        "attn_logit_softcapping": attention.soft_cap,
        "final_logit_softcapping": config.logit_soft_cap,
        "use_parallel_residual": parallel or None,
        "attention.causal": None if config.causal else False,
    }
    if isinstance(ffn, RoutedFfnConfig):
        experts = by_name(config.family, "test").description.blocks.experts
        assert experts is not None
        settings |= {
            "feed_forward_length": 1000,
            experts.gguf_neurons: min(ffn.experts),
            "expert_count": len(ffn.experts),
            "expert_used_count": ffn.top_k,
        }
    else:
        settings["feed_forward_length"] = ffn.n_neurons
    for window, rope in ropes:
        settings["rope.dimension_count"] = rope.rotary_dim
        if window is None or len({theta for _, theta in ropes}) == 1:
            settings["rope.freq_base"] = float(rope.theta)
    return settings
