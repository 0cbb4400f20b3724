"""OLMo 2: norms after the sub-blocks, queries and keys normalised over their whole width."""

from __future__ import annotations

from slimformer.checkpoint.families.description import Blocks, Description, Keys, Ropes
from slimformer.checkpoint.families.family import Family, named
from slimformer.checkpoint.families.llama import NAMES, QK_NORM_NAMES

OLMO2 = Family(
    name="olmo2",
    huggingface_type="olmo2",
    huggingface_class="Olmo2ForCausalLM",
    gguf_architecture="olmo2",
    gguf_lacks=frozenset(
        (
            "width",
            "attention_bias",
        )
    ),
    names=named(
        (
            "layers.{i}.attention.post_norm",
            "model.layers.{i}.post_attention_layernorm",
            "blk.{i}.post_attention_norm",
        ),
        (
            "layers.{i}.ffn.post_norm",
            "model.layers.{i}.post_feedforward_layernorm",
            "blk.{i}.post_ffw_norm",
        ),
        ("layers.{i}.attention.norm", None, None),
        ("layers.{i}.ffn.norm", None, None),
        base=(*NAMES, *QK_NORM_NAMES),
    ),
    description=Description(
        Keys(head_dim=None),
        Blocks(
            norm_place="after",
            norm_eps=1e-5,
            qk_norm="width",
            qkv_bias="attention_bias",
            output_bias="attention_bias",
            rope=Ropes(theta=500000.0),
        ),
    ),
)
