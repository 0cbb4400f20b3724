"""The shape and size of a model, as plain data."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slimformer.checkpoint import packed
from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.config import (
    AttentionConfig,
    FfnConfig,
    LayerConfig,
    LinkConfig,
    ModelConfig,
    RoutedFfnConfig,
)
from slimformer.errors import RecipeError
from slimformer.prune import Recipe

Layer = dict[str, Any]


def summarise(checkpoint: Checkpoint) -> dict[str, Any]:
    """Family, parameters, bytes and the shape of every layer.

    ``bytes`` is what the tensors take in the element types of the checkpoint, their zeros among
    them; ``zeros`` is the share of the layers' matrices that its recipe made zero. What is absent
    is ``None``.
    """
    config = checkpoint.config
    return {
        "name": checkpoint.name,
        "family": config.family,
        "parameters": config.parameters(),
        "non_embedding_parameters": config.non_embedding_parameters(),
        "bytes": checkpoint.nbytes,
        "zeros": zeros_share(checkpoint),
        "vocab_size": config.vocab_size,
        "channels": config.n_channels,
        "max_positions": config.max_positions,
        "tied_head": config.tied_head,
        "layers": describe_layers(config),
    }


def zeros_share(checkpoint: Checkpoint) -> float | None:
    """Share of the layers' matrices that is zero; ``None`` where the recipe does not say."""
    try:
        zeros = Recipe.from_dict(checkpoint.recipe or {}).zeros
    except RecipeError:
        return None
    return None if zeros is None else zeros.share(checkpoint.config)


def describe_layers(config: ModelConfig) -> list[Layer]:
    """Heads, KV heads and neurons of every layer."""
    return [_describe(layer) for layer in config.layers]


def file_bytes(path: Path) -> int:
    """Bytes of a model file, or of the tensor files in a model folder."""
    if path.is_dir():
        files = [*path.glob("*.safetensors"), *path.glob(packed.FILE)]
        return sum(file.stat().st_size for file in files)
    return path.stat().st_size


def group_layers(layers: list[Layer]) -> Iterator[tuple[int, int, Layer]]:
    """First and last index of each run of equal neighbours, and what they look like."""
    index = 0
    for layer, run in itertools.groupby(layers):
        count = len(list(run))
        yield index, index + count - 1, layer
        index += count


def _describe(layer: LayerConfig) -> Layer:
    attention, ffn = layer.attention, layer.ffn
    described: Layer = {
        "heads": None,
        "kv_heads": None,
        "head_dim": None,
        "value_dim": None,
        "q_to_kv": None,
        "window": None,
        "neurons": None,
        "experts": None,
        "experts_run": None,
        "attention_link": attention.kind if isinstance(attention, LinkConfig) else None,
        "ffn_link": ffn.kind if isinstance(ffn, LinkConfig) else None,
    }
    if isinstance(attention, AttentionConfig):
        described["heads"] = attention.n_heads
        described["kv_heads"] = attention.n_kv_heads
        described["head_dim"] = attention.head_dim
        described["value_dim"] = attention.value_dim
        described["q_to_kv"] = list(attention.q_to_kv)
        described["window"] = attention.window
    if isinstance(ffn, FfnConfig):
        described["neurons"] = ffn.n_neurons
    if isinstance(ffn, RoutedFfnConfig):
        described["neurons"] = ffn.n_neurons
        described["experts"] = list(ffn.experts)
        described["experts_run"] = ffn.top_k
    return described
