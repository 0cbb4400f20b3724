"""Llama, and its kin that differ from it in a few settings.

RMS norm, rotary positions, grouped queries, SwiGLU.
"""

from __future__ import annotations

from slimformer.checkpoint.families.description import Blocks, Description, Ropes, Windows
from slimformer.checkpoint.families.family import Family, TensorNames, named

NAMES = named(
    ("embedding", "model.embed_tokens", "token_embd"),
    ("layers.{i}.attention.norm", "model.layers.{i}.input_layernorm", "blk.{i}.attn_norm"),
    ("layers.{i}.attention.q", "model.layers.{i}.self_attn.q_proj", "blk.{i}.attn_q"),
    ("layers.{i}.attention.k", "model.layers.{i}.self_attn.k_proj", "blk.{i}.attn_k"),
    ("layers.{i}.attention.v", "model.layers.{i}.self_attn.v_proj", "blk.{i}.attn_v"),
    ("layers.{i}.attention.o", "model.layers.{i}.self_attn.o_proj", "blk.{i}.attn_output"),
    ("layers.{i}.attention.link", "model.layers.{i}.attention_link", None),
    ("layers.{i}.ffn.norm", "model.layers.{i}.post_attention_layernorm", "blk.{i}.ffn_norm"),
    ("layers.{i}.ffn.gate", "model.layers.{i}.mlp.gate_proj", "blk.{i}.ffn_gate"),
    ("layers.{i}.ffn.up", "model.layers.{i}.mlp.up_proj", "blk.{i}.ffn_up"),
    ("layers.{i}.ffn.down", "model.layers.{i}.mlp.down_proj", "blk.{i}.ffn_down"),
    ("layers.{i}.ffn.link", "model.layers.{i}.mlp_link", None),
    ("final_norm", "model.norm", "output_norm"),
    ("head", "lm_head", "output"),
)

QK_NORM_NAMES: tuple[TensorNames, ...] = named(
    ("layers.{i}.attention.q_norm", "model.layers.{i}.self_attn.q_norm", "blk.{i}.attn_q_norm"),
    ("layers.{i}.attention.k_norm", "model.layers.{i}.self_attn.k_norm", "blk.{i}.attn_k_norm"),
)

_BIASES = Blocks(qkv_bias="attention_bias", output_bias="attention_bias", ffn_bias="mlp_bias")

LLAMA = Family(
    name="llama",
    huggingface_type="llama",
    huggingface_class="LlamaForCausalLM",
    gguf_architecture="llama",
    names=NAMES,
    description=Description(blocks=_BIASES),
    gguf_interleaved=True,
)

MISTRAL = Family(
    name="mistral",
    huggingface_type="mistral",
    huggingface_class="MistralForCausalLM",
    gguf_architecture=None,  # its files say llama
    names=NAMES,
    description=Description(blocks=Blocks(windows=Windows())),
)

SMOLLM3 = Family(
    name="smollm3",
    huggingface_type="smollm3",
    huggingface_class="SmolLM3ForCausalLM",
    gguf_architecture="smollm3",
    gguf_lacks=frozenset(
        (
            "window",
            "attention_bias",
            "ffn_bias",
        )
    ),
    names=NAMES,
    description=Description(
        blocks=Blocks(
            qkv_bias="attention_bias",
            output_bias="attention_bias",
            ffn_bias="mlp_bias",
            rope=Ropes(theta=2000000.0, skips=True),
            windows=Windows(switch="use_sliding_window"),
            tied_head=True,
        ),
    ),
    gguf_interleaved=True,
)
