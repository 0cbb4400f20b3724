"""GPT-2, GPT-NeoX and OPT: layer norm and biases everywhere, feed-forward blocks without gate."""

from __future__ import annotations

from slimformer.checkpoint.families.description import Blocks, Description, Keys, Ropes
from slimformer.checkpoint.families.family import Family, Packed, named

_QKV = ("layers.{i}.attention.q", "layers.{i}.attention.k", "layers.{i}.attention.v")

GPT2 = Family(
    name="gpt2",
    huggingface_type="gpt2",
    huggingface_class="GPT2LMHeadModel",
    gguf_architecture="gpt2",
    gguf_lacks=frozenset(("width",)),
    names=named(
        ("embedding", "transformer.wte", "token_embd"),
        ("positions", "transformer.wpe", "position_embd"),
        ("layers.{i}.attention.norm", "transformer.h.{i}.ln_1", "blk.{i}.attn_norm"),
        ("layers.{i}.attention.o", None, "blk.{i}.attn_output"),
        ("layers.{i}.ffn.norm", "transformer.h.{i}.ln_2", "blk.{i}.ffn_norm"),
        ("layers.{i}.ffn.up", None, "blk.{i}.ffn_up"),
        ("layers.{i}.ffn.down", None, "blk.{i}.ffn_down"),
        ("final_norm", "transformer.ln_f", "output_norm"),
        ("head", "lm_head", "output"),
    ),
    packed=(
        Packed("transformer.h.{i}.attn.c_attn", _QKV, transposed=True),
        Packed("transformer.h.{i}.attn.c_proj", ("layers.{i}.attention.o",), transposed=True),
        Packed("transformer.h.{i}.mlp.c_fc", ("layers.{i}.ffn.up",), transposed=True),
        Packed("transformer.h.{i}.mlp.c_proj", ("layers.{i}.ffn.down",), transposed=True),
    ),
    gguf_packed=(Packed("blk.{i}.attn_qkv", _QKV),),
    prefix="transformer.",
    buffers=(".attn.bias", ".attn.masked_bias"),
    description=Description(
        Keys(
            channels="n_embd",
            layers="n_layer",
            heads="n_head",
            kv_heads=None,
            head_dim=None,
            neurons="n_inner",
            positions="n_positions",
            norm_eps="layer_norm_epsilon",
            activation="activation_function",
        ),
        Blocks(
            norm="layer",
            norm_eps=1e-5,
            qkv_bias=True,
            output_bias=True,
            ffn_bias=True,
            activation="gelu_new",
            gated=False,
            rope=None,
            learned_positions=True,
            tied_head=True,
            neurons_per_channel=4,
        ),
        {"scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,)},
    ),
)

GPT_NEOX = Family(
    name="gpt_neox",
    huggingface_type="gpt_neox",
    huggingface_class="GPTNeoXForCausalLM",
    gguf_architecture="gptneox",
    gguf_lacks=frozenset(("width",)),
    names=named(
        ("embedding", "gpt_neox.embed_in", "token_embd"),
        ("layers.{i}.attention.norm", "gpt_neox.layers.{i}.input_layernorm", "blk.{i}.attn_norm"),
        ("layers.{i}.attention.o", "gpt_neox.layers.{i}.attention.dense", "blk.{i}.attn_output"),
        ("layers.{i}.ffn.norm", "gpt_neox.layers.{i}.post_attention_layernorm", "blk.{i}.ffn_norm"),
        ("layers.{i}.ffn.up", "gpt_neox.layers.{i}.mlp.dense_h_to_4h", "blk.{i}.ffn_up"),
        ("layers.{i}.ffn.down", "gpt_neox.layers.{i}.mlp.dense_4h_to_h", "blk.{i}.ffn_down"),
        ("final_norm", "gpt_neox.final_layer_norm", "output_norm"),
        ("head", "embed_out", "output"),
    ),
    packed=(Packed("gpt_neox.layers.{i}.attention.query_key_value", _QKV, by_head=True),),
    gguf_packed=(Packed("blk.{i}.attn_qkv", _QKV),),
    buffers=(".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"),
    description=Description(
        Keys(kv_heads=None, head_dim=None, norm_eps="layer_norm_eps"),
        Blocks(
            norm="layer",
            norm_eps=1e-5,
            qkv_bias=True,
            output_bias=True,
            ffn_bias=True,
            activation="gelu",
            gated=False,
            parallel="use_parallel_residual",
            rope=Ropes(theta_key="rotary_emb_base", share=0.25, share_key="rotary_pct"),
        ),
        {"attention_bias": (True,)},
    ),
)

OPT = Family(
    name="opt",
    huggingface_type="opt",
    huggingface_class="OPTForCausalLM",
    gguf_architecture=None,
    names=named(
        ("embedding", "model.decoder.embed_tokens", None),
        ("positions", "model.decoder.embed_positions", None),
        ("layers.{i}.attention.norm", "model.decoder.layers.{i}.self_attn_layer_norm", None),
        ("layers.{i}.attention.q", "model.decoder.layers.{i}.self_attn.q_proj", None),
        ("layers.{i}.attention.k", "model.decoder.layers.{i}.self_attn.k_proj", None),
        ("layers.{i}.attention.v", "model.decoder.layers.{i}.self_attn.v_proj", None),
        ("layers.{i}.attention.o", "model.decoder.layers.{i}.self_attn.out_proj", None),
        ("layers.{i}.ffn.norm", "model.decoder.layers.{i}.final_layer_norm", None),
        ("layers.{i}.ffn.up", "model.decoder.layers.{i}.fc1", None),
        ("layers.{i}.ffn.down", "model.decoder.layers.{i}.fc2", None),
        ("final_norm", "model.decoder.final_layer_norm", None),
        ("head", "lm_head", None),
    ),
    prefix="model.",
    description=Description(
        Keys(
            kv_heads=None,
            head_dim=None,
            neurons="ffn_dim",
            norm_eps=None,
            activation="activation_function",
        ),
        Blocks(
            norm="layer",
            norm_eps=1e-5,
            qkv_bias=True,
            output_bias=True,
            ffn_bias=True,
            activation="relu",
            gated=False,
            rope=None,
            learned_positions=True,
            position_offset=2,
            tied_head=True,
        ),
        {
            "do_layer_norm_before": (True,),
            "_remove_final_layer_norm": (False,),
            "enable_bias": (True,),
            "layer_norm_elementwise_affine": (True,),
        },
        as_wide_as_channels=("word_embed_proj_dim",),
    ),
)
