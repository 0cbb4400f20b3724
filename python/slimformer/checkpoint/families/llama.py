"""The Llama family: RMSNorm, rotary positions, grouped queries, SwiGLU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from slimformer.checkpoint.families.family import Family, RowOrder, TensorNames
from slimformer.checkpoint.families.rope_scaling import (
    rope_from_gguf,
    rope_from_huggingface,
    rope_to_huggingface,
)
from slimformer.checkpoint.fields import Fields
from slimformer.checkpoint.gguf_header import GgufFile
from slimformer.config import (
    MAX_DIMENSION,
    MAX_LAYERS,
    AttentionConfig,
    FfnConfig,
    LayerConfig,
    ModelConfig,
)
from slimformer.errors import FormatError, UnsupportedModelError

MAX_HEADS = 1024
"""Several times what any model has; a hostile file must not make maps of millions of heads."""

_NEUTRAL_HUGGINGFACE: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "sliding_window": (),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "partial_rotary_factor": (1, 1.0),
    "rope_interleaved": (False,),
    "quantization_config": (),
    "num_local_experts": (0, 1),
    "attention_multiplier": (),
    "embedding_multiplier": (1, 1.0),
    "residual_multiplier": (1, 1.0),
    "logits_scaling": (1, 1.0),
    "no_rope_layers": ([],),
}
"""Settings that change the computation, with the values (besides null) that leave it alone."""

_NEUTRAL_GGUF: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "use_parallel_residual": (False,),
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "rope.scaling.attn_factor": (1.0,),
}

_READ_GGUF = frozenset(
    (
        *("vocab_size", "context_length", "embedding_length", "block_count"),
        *("feed_forward_length", "tensor_data_layout"),
        *("attention.head_count", "attention.head_count_kv", "attention.key_length"),
        *("attention.value_length", "attention.layer_norm_rms_epsilon", "attention.scale"),
        *("rope.dimension_count", "rope.freq_base", "rope.scale_linear", "rope.scaling.type"),
        *("rope.scaling.factor", "rope.scaling.original_context_length"),
        "rope.scaling.finetuned",
    )
)
"""GGUF settings under the ``llama.`` prefix that are read, or say nothing about the shape."""

_ROPE_FACTORS = "rope_freqs.weight"


def _from_huggingface(config: Fields) -> ModelConfig:
    for key, allowed in _NEUTRAL_HUGGINGFACE.items():
        if key in config and config.raw(key) not in allowed:
            raise UnsupportedModelError(
                f"{config.where}: {key}: {config.raw(key)!r:.60} does not run here"
            )
    channels = config.dimension("hidden_size")
    n_heads = config.dimension("num_attention_heads", limit=MAX_HEADS)
    n_kv_heads = config.dimension("num_key_value_heads", n_heads, limit=MAX_HEADS)
    head_dim = config.dimension("head_dim", max(1, channels // n_heads))
    bias = config.boolean("attention_bias", False)
    attention = AttentionConfig(
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        value_dim=head_dim,
        q_to_kv=_grouped(n_heads, n_kv_heads, config.where),
        scale=head_dim**-0.5,
        rope=rope_from_huggingface(config, head_dim),
        qkv_bias=bias,
        output_bias=bias,
    )
    ffn = FfnConfig(config.dimension("intermediate_size"), config.boolean("mlp_bias", False))
    n_layers = config.dimension("num_hidden_layers", limit=MAX_LAYERS)
    return ModelConfig(
        family="llama",
        vocab_size=config.dimension("vocab_size"),
        n_channels=channels,
        norm_divisor=channels,
        norm_eps=config.number("rms_norm_eps", 1e-6),
        tied_head=config.boolean("tie_word_embeddings", False),
        max_positions=config.dimension("max_position_embeddings", 2048),
        layers=(LayerConfig(attention, ffn),) * n_layers,
    )


def _grouped(n_heads: int, n_kv_heads: int, where: str) -> tuple[int, ...]:
    """The map of query to KV heads when consecutive equal groups share one."""
    if n_heads % n_kv_heads:
        raise FormatError(
            f"{where}: {n_heads} query heads do not divide into groups for {n_kv_heads} KV heads"
        )
    return tuple(head * n_kv_heads // n_heads for head in range(n_heads))


def _to_huggingface(config: ModelConfig) -> Mapping[str, Any] | None:
    shapes = set(config.layers)
    if len(shapes) != 1:
        return None
    (layer,) = shapes
    attention, ffn = layer.attention, layer.ffn
    if not isinstance(attention, AttentionConfig) or not isinstance(ffn, FfnConfig):
        return None
    head_dim = attention.head_dim
    if attention.rope is None or attention.n_heads % attention.n_kv_heads:
        return None
    expressible = (
        attention.rope.rotary_dim == head_dim
        and attention.value_dim == head_dim
        and attention.scale == head_dim**-0.5
        and attention.q_to_kv == _grouped(attention.n_heads, attention.n_kv_heads, "")
        and attention.qkv_bias == attention.output_bias
        and config.norm_divisor == config.n_channels
        # transformers 5 refuses other widths, even where head_dim is given
        and config.n_channels % attention.n_heads == 0
    )
    if not expressible:
        return None
    return {
        "hidden_size": config.n_channels,
        "intermediate_size": ffn.n_neurons,
        "num_hidden_layers": len(config.layers),
        "num_attention_heads": attention.n_heads,
        "num_key_value_heads": attention.n_kv_heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "attention_bias": attention.qkv_bias,
        "mlp_bias": ffn.bias,
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": config.tied_head,
        "vocab_size": config.vocab_size,
        **rope_to_huggingface(attention.rope),
    }


def _from_gguf(file: GgufFile) -> ModelConfig:
    metadata = file.metadata
    _check_gguf_settings(metadata)
    channels = metadata.dimension("llama.embedding_length")
    n_layers = metadata.dimension("llama.block_count", limit=MAX_LAYERS)
    heads = _per_layer(metadata, "llama.attention.head_count", n_layers, MAX_HEADS)
    if "llama.attention.head_count_kv" in metadata:
        kv_heads = _per_layer(metadata, "llama.attention.head_count_kv", n_layers, MAX_HEADS)
    else:
        kv_heads = heads
    neurons = _per_layer(metadata, "llama.feed_forward_length", n_layers, MAX_DIMENSION)
    vocab_size = _vocab_size(file)
    attentions: dict[tuple[Any, ...], AttentionConfig] = {}
    layers = []
    for index in range(n_layers):
        prefix = f"blk.{index}"
        key = (
            heads[index],
            kv_heads[index],
            f"{prefix}.attn_q.bias" in file.tensors,
            f"{prefix}.attn_output.bias" in file.tensors,
        )
        if key not in attentions:
            attentions[key] = _gguf_attention(file, channels, *key)
        ffn = FfnConfig(neurons[index], bias=f"{prefix}.ffn_down.bias" in file.tensors)
        layers.append(LayerConfig(attentions[key], ffn))
    return ModelConfig(
        family="llama",
        vocab_size=vocab_size,
        n_channels=channels,
        norm_divisor=channels,
        norm_eps=metadata.number("llama.attention.layer_norm_rms_epsilon"),
        tied_head="output.weight" not in file.tensors,
        max_positions=metadata.dimension("llama.context_length"),
        layers=tuple(layers),
    )


def _check_gguf_settings(metadata: Fields) -> None:
    """Every setting of the family must be one that is read, or leave the computation alone."""
    for key in metadata:
        prefix, _, setting = key.partition(".")
        if prefix != "llama" or setting in _READ_GGUF:
            continue
        allowed = _NEUTRAL_GGUF.get(setting, ())
        value = metadata.raw(key)
        if not isinstance(value, (int, float)) or value not in allowed:
            raise UnsupportedModelError(f"{metadata.where}: {key}: {value!r:.60} does not run here")


def _per_layer(metadata: Fields, key: str, n_layers: int, limit: int) -> list[int]:
    """A setting that is one number for all layers or an array with one for each."""
    if not isinstance(metadata.raw(key), np.ndarray):
        return [metadata.dimension(key, limit=limit)] * n_layers
    values = metadata.array(key)
    if values.dtype.kind not in "iu" or len(values) != n_layers:
        metadata.fail(key, f"an integer or {n_layers} of them, one a layer", values)
    if values.min() < 1 or values.max() > limit:
        metadata.fail(key, f"integers from 1 to {limit}", values)
    return [int(value) for value in values]


def _vocab_size(file: GgufFile) -> int:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise FormatError(f"{file.path}: tensor token_embd.weight: expected, found none")
    rows = embedding.shape[0]
    claimed = file.metadata.integer("llama.vocab_size", rows)
    if claimed != rows:
        raise FormatError(
            f"{file.path}: tensor token_embd.weight: expected {claimed} rows as "
            f"llama.vocab_size says, found {rows}"
        )
    return rows


def _gguf_attention(
    file: GgufFile, channels: int, n_heads: int, n_kv_heads: int, qkv_bias: bool, output_bias: bool
) -> AttentionConfig:
    metadata = file.metadata
    head_counts = metadata.raw("llama.attention.head_count")
    if "llama.attention.key_length" in metadata:
        head_dim = metadata.dimension("llama.attention.key_length")
    elif isinstance(head_counts, np.ndarray) and len(set(head_counts.tolist())) > 1:
        metadata.fail(
            "llama.attention.key_length",
            "the width of a head, since the number of heads differs between layers",
            None,
        )
    else:
        head_dim = max(1, channels // n_heads)
    scale = metadata.number("llama.attention.scale", 0.0)
    rotary_dim = metadata.dimension("llama.rope.dimension_count", head_dim)
    return AttentionConfig(
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        value_dim=metadata.dimension("llama.attention.value_length", head_dim),
        q_to_kv=_grouped(n_heads, n_kv_heads, str(file.path)),
        scale=scale or head_dim**-0.5,
        rope=rope_from_gguf(metadata, "llama", rotary_dim, _rope_factors(file, rotary_dim)),
        qkv_bias=qkv_bias,
        output_bias=output_bias,
    )


def _rope_factors(file: GgufFile, rotary_dim: int) -> np.ndarray[Any, Any] | None:
    tensor = file.tensors.get(_ROPE_FACTORS)
    if tensor is None:
        return None
    if tensor.shape != (rotary_dim // 2,) or tensor.quantisation.name != "F32":
        raise FormatError(
            f"{file.path}: tensor {_ROPE_FACTORS}: expected F32 of shape ({rotary_dim // 2},), "
            f"found {tensor.quantisation.name} of shape {tensor.shape}"
        )
    return file.tensor_bytes(tensor).view("<f4")


def _gguf_row_order(config: ModelConfig, name: str) -> RowOrder | None:
    """Undo the interleaving of q and k rows.

    A llama-architecture GGUF keeps the two members of a rotary pair next to each other,
    rows (2j, 2j + 1) of a head; here they are (j, j + rotary_dim / 2).
    """
    parts = name.split(".")
    if parts[0] != "layers" or parts[2] != "attention" or parts[3] not in ("q", "k"):
        return None
    attention = config.layers[int(parts[1])].attention
    assert isinstance(attention, AttentionConfig)
    assert attention.rope is not None
    heads = attention.n_heads if parts[3] == "q" else attention.n_kv_heads
    rotary_dim = attention.rope.rotary_dim
    within = np.arange(attention.head_dim)
    within[:rotary_dim] = np.arange(rotary_dim).reshape(-1, 2).T.ravel()
    return (np.arange(heads)[:, None] * attention.head_dim + within).ravel()


LLAMA = Family(
    name="llama",
    huggingface_type="llama",
    huggingface_class="LlamaForCausalLM",
    gguf_architecture="llama",
    names=tuple(
        TensorNames(*row)
        for row in (
            ("embedding", "model.embed_tokens", "token_embd"),
            ("layers.{i}.attention.norm", "model.layers.{i}.input_layernorm", "blk.{i}.attn_norm"),
            ("layers.{i}.attention.q", "model.layers.{i}.self_attn.q_proj", "blk.{i}.attn_q"),
            ("layers.{i}.attention.k", "model.layers.{i}.self_attn.k_proj", "blk.{i}.attn_k"),
            ("layers.{i}.attention.v", "model.layers.{i}.self_attn.v_proj", "blk.{i}.attn_v"),
            ("layers.{i}.attention.o", "model.layers.{i}.self_attn.o_proj", "blk.{i}.attn_output"),
            ("layers.{i}.attention.link", "model.layers.{i}.attention_link", None),
            (
                "layers.{i}.ffn.norm",
                "model.layers.{i}.post_attention_layernorm",
                "blk.{i}.ffn_norm",
            ),
            ("layers.{i}.ffn.gate", "model.layers.{i}.mlp.gate_proj", "blk.{i}.ffn_gate"),
            ("layers.{i}.ffn.up", "model.layers.{i}.mlp.up_proj", "blk.{i}.ffn_up"),
            ("layers.{i}.ffn.down", "model.layers.{i}.mlp.down_proj", "blk.{i}.ffn_down"),
            ("layers.{i}.ffn.link", "model.layers.{i}.mlp_link", None),
            ("final_norm", "model.norm", "output_norm"),
            ("head", "lm_head", "output"),
        )
    ),
    from_huggingface=_from_huggingface,
    to_huggingface=_to_huggingface,
    from_gguf=_from_gguf,
    gguf_row_order=_gguf_row_order,
    gguf_consumed=frozenset({_ROPE_FACTORS}),
)
