"""The settings by which a ragged model is saved: what ``config.json`` says of each layer.

The ``slimformer`` object in ``config.json`` carries a schema version. A uniform model that
its family's class in ``transformers`` can express gets that class's settings and only the
version from here, which marks the folder as written by Slimformer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, get_args

from slimformer.checkpoint.families import Family, by_name
from slimformer.checkpoint.families.experts import EXPERT_NAMES
from slimformer.checkpoint.families.family import named, translated
from slimformer.checkpoint.families.llama import NAMES as LLAMA_NAMES
from slimformer.checkpoint.families.llama import QK_NORM_NAMES
from slimformer.checkpoint.fields import Fields
from slimformer.config import (
    MAX_LAYERS,
    AttentionConfig,
    DynamicRopeScaling,
    FfnConfig,
    KeptPairs,
    LayerConfig,
    LinearRopeScaling,
    LinkConfig,
    LinkKind,
    Llama3RopeScaling,
    LongRopeScaling,
    ModelConfig,
    RopeConfig,
    RopeScaling,
    RoutedFfnConfig,
    YarnRopeScaling,
)
from slimformer.config_settings import family_settings, family_settings_from
from slimformer.errors import FormatError, UnsupportedModelError

SCHEMA = 1
KEY = "slimformer"
MODEL_TYPE = "slimformer"
CLASS_NAMES = {True: "SlimformerForCausalLM", False: "SlimformerModel"}
"""The class in ``transformers`` of a model that is causal, and of an encoder."""

PREFIX = "model."
"""What all names begin with but that of the head; folders of encoders may leave it out."""

NAMES = named(
    ("positions", "model.embed_positions", None),
    ("token_types", "model.embed_token_types", None),
    ("embedding_norm", "model.embed_norm", None),
    ("layers.{i}.attention.post_norm", "model.layers.{i}.attention_post_norm", None),
    ("layers.{i}.ffn.post_norm", "model.layers.{i}.mlp_post_norm", None),
    base=(*LLAMA_NAMES, *QK_NORM_NAMES, *EXPERT_NAMES),
)
"""Tensor names of ragged models, of whatever family: Llama's, and what Llama does not have."""

_SCALINGS: dict[str, type[RopeScaling]] = {
    "linear": LinearRopeScaling,
    "dynamic": DynamicRopeScaling,
    "llama3": Llama3RopeScaling,
    "yarn": YarnRopeScaling,
    "longrope": LongRopeScaling,
}
"""What scalings are called, here and in other formats."""


def describe(config: ModelConfig) -> dict[str, Any]:
    """The settings of ``config.json`` for any shape."""
    family = by_name(config.family, "config")
    plain = family.to_huggingface(config)
    if plain is not None:
        return {
            "architectures": [family.huggingface_class],
            "model_type": family.huggingface_type,
            **plain,
            KEY: {"schema": SCHEMA},
        }
    return {
        "architectures": [CLASS_NAMES[config.causal]],
        "model_type": MODEL_TYPE,
        "vocab_size": config.vocab_size,
        "hidden_size": config.n_channels,
        "num_hidden_layers": len(config.layers),
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": config.tied_head,
        KEY: {
            "schema": SCHEMA,
            "family": config.family,
            "norm_divisor": config.norm_divisor,
            **family_settings(config),
            "layers": [
                {
                    "attention": _describe_sub_block(layer.attention),
                    "ffn": _describe_sub_block(layer.ffn),
                    **family_settings(layer),
                }
                for layer in config.layers
            ],
        },
    }


def _describe_sub_block(
    sub_block: AttentionConfig | FfnConfig | RoutedFfnConfig | LinkConfig | None,
) -> dict[str, Any] | None:
    if sub_block is None:
        return None
    if isinstance(sub_block, LinkConfig):
        return {"link": sub_block.kind, "rank": sub_block.rank}
    if isinstance(sub_block, FfnConfig):
        return {
            "n_neurons": sub_block.n_neurons,
            "bias": sub_block.bias,
            **family_settings(sub_block),
        }
    if isinstance(sub_block, RoutedFfnConfig):
        return {
            "experts": list(sub_block.experts),
            "top_k": sub_block.top_k,
            **family_settings(sub_block),
        }
    return {
        "n_heads": sub_block.n_heads,
        "n_kv_heads": sub_block.n_kv_heads,
        "head_dim": sub_block.head_dim,
        "value_dim": sub_block.value_dim,
        "q_to_kv": list(sub_block.q_to_kv),
        "scale": sub_block.scale,
        "rope": _describe_rope(sub_block.rope),
        "qkv_bias": sub_block.qkv_bias,
        "output_bias": sub_block.output_bias,
        **family_settings(sub_block),
    }


def _describe_rope(rope: RopeConfig | None) -> dict[str, Any] | None:
    if rope is None:
        return None
    scaling = rope.scaling
    described: dict[str, Any] | None = None
    if scaling is not None:
        (kind,) = (name for name, type_ in _SCALINGS.items() if isinstance(scaling, type_))
        described = {"type": kind, **dataclasses.asdict(scaling)}
    kept = {} if rope.kept is None else {"kept": dataclasses.asdict(rope.kept)}
    return {"rotary_dim": rope.rotary_dim, "theta": rope.theta, "scaling": described, **kept}


def tensor_name(canonical: str) -> str:
    """A tensor's name in the folder of a ragged model."""
    return translated(NAMES, canonical, "huggingface") or canonical


def parse(settings: Fields) -> tuple[Family, ModelConfig]:
    """The family and shape that the settings of a ragged model describe."""
    own = settings.child(KEY)
    schema = own.integer("schema")
    if schema != SCHEMA:
        raise UnsupportedModelError(
            f"{own.where}: schema: expected {SCHEMA}, found {schema}; this folder was written by "
            "another version of Slimformer"
        )
    family = by_name(own.text("family"), own.where)
    entries = own.raw("layers")
    if not isinstance(entries, list) or len(entries) > MAX_LAYERS:
        own.fail("layers", f"a list of at most {MAX_LAYERS} layers", entries)
    if settings.integer("num_hidden_layers") != len(entries):
        settings.fail("num_hidden_layers", str(len(entries)), settings.raw("num_hidden_layers"))
    layers = []
    for index, entry in enumerate(entries):
        where = f"{own.where}: layer {index}"
        if not isinstance(entry, dict):
            raise FormatError(f"{where}: expected an object, found {entry!r:.60}")
        layer = Fields(where, entry)
        extra = family_settings_from(layer.raw, LayerConfig)
        _only(layer, "attention", "ffn", *extra)
        layers.append(LayerConfig(_parse_attention(layer), _parse_ffn(layer), **extra))
    config = ModelConfig(
        family=family.name,
        vocab_size=settings.dimension("vocab_size"),
        n_channels=settings.dimension("hidden_size"),
        norm_divisor=own.dimension("norm_divisor"),
        norm_eps=settings.number("rms_norm_eps"),
        tied_head=settings.boolean("tie_word_embeddings"),
        max_positions=settings.dimension("max_position_embeddings"),
        layers=tuple(layers),
        **family_settings_from(own.raw, ModelConfig),
    )
    return family, config


def _parse_attention(layer: Fields) -> AttentionConfig | LinkConfig | None:
    if "attention" not in layer:
        return None
    fields = layer.child("attention")
    if "link" in fields:
        return _parse_link(fields)
    extra = family_settings_from(fields.raw, AttentionConfig)
    _only(
        fields,
        *("n_heads", "n_kv_heads", "head_dim", "value_dim", "q_to_kv", "scale", "rope"),
        *("qkv_bias", "output_bias", *extra),
    )
    q_to_kv = _integers(fields, "q_to_kv")
    return AttentionConfig(
        n_heads=fields.dimension("n_heads"),
        n_kv_heads=fields.dimension("n_kv_heads", limit=len(q_to_kv)),
        head_dim=fields.dimension("head_dim"),
        value_dim=fields.dimension("value_dim"),
        q_to_kv=q_to_kv,
        scale=fields.number("scale"),
        rope=_parse_rope(fields),
        qkv_bias=fields.boolean("qkv_bias"),
        output_bias=fields.boolean("output_bias"),
        **extra,
    )


def _integers(fields: Fields, key: str) -> tuple[int, ...]:
    values = fields.raw(key)
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        fields.fail(key, "a list of integers", values)
    return tuple(values)


def _parse_ffn(layer: Fields) -> FfnConfig | RoutedFfnConfig | LinkConfig | None:
    if "ffn" not in layer:
        return None
    fields = layer.child("ffn")
    if "link" in fields:
        return _parse_link(fields)
    if "experts" in fields:
        extra = family_settings_from(fields.raw, RoutedFfnConfig)
        _only(fields, "experts", "top_k", *extra)
        experts = _integers(fields, "experts")
        return RoutedFfnConfig(experts, fields.dimension("top_k"), **extra)
    extra = family_settings_from(fields.raw, FfnConfig)
    _only(fields, "n_neurons", "bias", *extra)
    return FfnConfig(fields.dimension("n_neurons"), fields.boolean("bias"), **extra)


def _parse_link(fields: Fields) -> LinkConfig:
    _only(fields, "link", "rank")
    kind = fields.text("link")
    if kind not in get_args(LinkKind):
        fields.fail("link", f"one of {', '.join(get_args(LinkKind))}", kind)
    rank = fields.dimension("rank") if "rank" in fields else None
    return LinkConfig(kind, rank)  # type: ignore[arg-type]  # just checked


def _parse_rope(attention: Fields) -> RopeConfig | None:
    if "rope" not in attention:
        return None
    fields = attention.child("rope")
    _only(fields, "rotary_dim", "theta", "scaling", "kept")
    scaling = _parse_scaling(fields.child("scaling")) if "scaling" in fields else None
    kept = None
    if "kept" in fields:
        described = fields.child("kept")
        _only(described, "trained_dim", "pairs")
        kept = KeptPairs(described.dimension("trained_dim"), _integers(described, "pairs"))
    return RopeConfig(fields.dimension("rotary_dim"), fields.number("theta"), scaling, kept)


def _parse_scaling(fields: Fields) -> RopeScaling:
    kind = fields.text("type")
    if kind not in _SCALINGS:
        fields.fail("type", f"one of {', '.join(_SCALINGS)}", kind)
    parts = dataclasses.fields(_SCALINGS[kind])
    _only(fields, "type", *(part.name for part in parts))
    readers: dict[Any, Callable[[str], Any]] = {
        "float": fields.number,
        "int": fields.dimension,
        "bool": fields.boolean,
        "tuple[float, ...]": fields.numbers,
    }
    return _SCALINGS[kind](**{part.name: readers[part.type](part.name) for part in parts})


def _only(fields: Fields, *known: str) -> None:
    """A key that this schema does not have could change the model: it is not passed over."""
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise FormatError(f"{fields.where}: unexpected {', '.join(map(repr, unknown[:5]))}")
