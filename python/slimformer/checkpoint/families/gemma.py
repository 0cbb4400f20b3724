"""Gemma 1 to 3: norm weights counted from 1, scaled embeddings, GeGLU.

Gemma 2 normalises what sub-blocks read and what they add, sees all in every other layer and caps
scores and logits; Gemma 3 normalises queries and keys instead of capping, sees all in every sixth
layer and rotates by another base there.
"""

from __future__ import annotations

import dataclasses

from slimformer.checkpoint.families.description import Blocks, Description, Keys, Ropes, Windows
from slimformer.checkpoint.families.family import Family, named
from slimformer.checkpoint.families.llama import NAMES, QK_NORM_NAMES

_NAMES = named(
    (
        "layers.{i}.attention.post_norm",
        "model.layers.{i}.post_attention_layernorm",
        "blk.{i}.post_attention_norm",
    ),
    ("layers.{i}.ffn.norm", "model.layers.{i}.pre_feedforward_layernorm", "blk.{i}.ffn_norm"),
    (
        "layers.{i}.ffn.post_norm",
        "model.layers.{i}.post_feedforward_layernorm",
        "blk.{i}.post_ffw_norm",
    ),
    base=NAMES,
)

_GEMMA = Blocks(
    norm_offset=1.0,
    activation="gelu_pytorch_tanh",
    scaled_embedding=True,
    tied_head=True,
    qkv_bias="attention_bias",
    output_bias="attention_bias",
)

_KEYS = Keys(
    activation="hidden_activation",
    score_scale="query_pre_attn_scalar",
    attention_cap="attn_logit_softcapping",
    logit_cap="final_logit_softcapping",
)

GEMMA = Family(
    name="gemma",
    huggingface_type="gemma",
    huggingface_class="GemmaForCausalLM",
    gguf_architecture="gemma",
    names=NAMES,
    # Old files call the activation gelu, and mean its approximation.
    description=Description(
        Keys(activation="hidden_activation"), _GEMMA, {"hidden_act": ("gelu", "gelu_pytorch_tanh")}
    ),
)

GEMMA2 = Family(
    name="gemma2",
    huggingface_type="gemma2",
    huggingface_class="Gemma2ForCausalLM",
    gguf_architecture="gemma2",
    names=_NAMES,
    description=Description(
        _KEYS,
        dataclasses.replace(_GEMMA, norm_place="both", windows=Windows(full_every=2)),
    ),
)

GEMMA3 = Family(
    name="gemma3",
    huggingface_type="gemma3_text",
    huggingface_class="Gemma3ForCausalLM",
    gguf_architecture="gemma3",
    names=(*_NAMES, *QK_NORM_NAMES),
    description=Description(
        _KEYS,
        dataclasses.replace(
            _GEMMA,
            norm_place="both",
            qk_norm="head",
            rope=Ropes(theta=1000000.0, window_key="rope_local_base_freq"),
            windows=Windows(full_every=6, full_every_key="sliding_window_pattern"),
        ),
    ),
)
