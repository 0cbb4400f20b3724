"""Phi-3: fused projections, rotation of a part of each head."""

from __future__ import annotations

from slimformer.checkpoint.families.description import Blocks, Description, Keys, Ropes, Windows
from slimformer.checkpoint.families.family import Family, Packed, named
from slimformer.checkpoint.families.llama import NAMES

_QKV = ("layers.{i}.attention.q", "layers.{i}.attention.k", "layers.{i}.attention.v")
_GATE_UP = ("layers.{i}.ffn.gate", "layers.{i}.ffn.up")

PHI3 = Family(
    name="phi3",
    huggingface_type="phi3",
    huggingface_class="Phi3ForCausalLM",
    gguf_architecture="phi3",
    gguf_lacks=frozenset(
        (
            "width",
            "window",
        )
    ),
    names=named(*((name, None, None) for name in (*_QKV, *_GATE_UP)), base=NAMES),
    packed=(
        Packed("model.layers.{i}.self_attn.qkv_proj", _QKV),
        Packed("model.layers.{i}.mlp.gate_up_proj", _GATE_UP),
    ),
    gguf_packed=(Packed("blk.{i}.attn_qkv", _QKV), Packed("blk.{i}.ffn_up", _GATE_UP)),
    description=Description(
        Keys(head_dim=None),
        Blocks(
            norm_eps=1e-5,
            rope=Ropes(
                share_key="partial_rotary_factor",
                scaling_aliases={"su": "longrope", "yarn": "longrope"},  # what old files call it
            ),
            windows=Windows(),
        ),
    ),
)
