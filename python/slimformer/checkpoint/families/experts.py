"""Families with experts: Mixtral, OLMoE and Qwen 3 MoE."""

from __future__ import annotations

from slimformer.checkpoint.families.description import (
    Blocks,
    Description,
    Experts,
    Keys,
    Ropes,
    Windows,
)
from slimformer.checkpoint.families.family import Family, Packed, TensorNames, named
from slimformer.checkpoint.families.llama import NAMES, QK_NORM_NAMES

_STACKED = tuple(
    Packed(f"blk.{{i}}.ffn_{part}_exps", (f"layers.{{i}}.ffn.experts.{{e}}.{part}",), stacked=True)
    for part in ("gate", "up", "down")
)
"""GGUF keeps each matrix of all experts as one tensor."""


def _names(block: str, gate: str, up: str, down: str) -> tuple[TensorNames, ...]:
    """A router and experts below ``block`` of each layer."""
    experts = f"model.layers.{{i}}.{block}.experts.{{e}}"
    return named(
        ("layers.{i}.ffn.router", f"model.layers.{{i}}.{block}.gate", "blk.{i}.ffn_gate_inp"),
        ("layers.{i}.ffn.experts.{e}.gate", f"{experts}.{gate}", None),
        ("layers.{i}.ffn.experts.{e}.up", f"{experts}.{up}", None),
        ("layers.{i}.ffn.experts.{e}.down", f"{experts}.{down}", None),
    )


EXPERT_NAMES = _names("mlp", "gate_proj", "up_proj", "down_proj")


MIXTRAL = Family(
    name="mixtral",
    huggingface_type="mixtral",
    huggingface_class="MixtralForCausalLM",
    gguf_architecture="llama",
    gguf_lacks=frozenset(("window",)),
    gguf_packed=_STACKED,
    gguf_interleaved=True,
    names=(*NAMES, *_names("block_sparse_moe", gate="w1", up="w3", down="w2")),
    description=Description(
        blocks=Blocks(
            norm_eps=1e-5,
            rope=Ropes(theta=1e6),
            windows=Windows(),
            experts=Experts(("num_local_experts",), "chosen", softmax_over="chosen"),
        ),
    ),
)

QWEN3_MOE = Family(
    name="qwen3_moe",
    huggingface_type="qwen3_moe",
    huggingface_class="Qwen3MoeForCausalLM",
    gguf_architecture="qwen3moe",
    gguf_lacks=frozenset(("window", "attention_bias")),
    gguf_packed=_STACKED,
    names=(*NAMES, *EXPERT_NAMES, *QK_NORM_NAMES),
    description=Description(
        keys=Keys(neurons="moe_intermediate_size"),
        blocks=Blocks(
            qk_norm="head",
            qkv_bias="attention_bias",
            output_bias="attention_bias",
            windows=Windows(switch="use_sliding_window", listed=False),
            experts=Experts(
                ("num_experts", "num_local_experts"),
                "chosen",
                gguf_neurons="expert_feed_forward_length",
            ),
        ),
        neutral={"decoder_sparse_step": (1,), "mlp_only_layers": ([],)},
    ),
)

OLMOE = Family(
    name="olmoe",
    huggingface_type="olmoe",
    huggingface_class="OlmoeForCausalLM",
    gguf_architecture="olmoe",
    gguf_lacks=frozenset(("width", "groups", "attention_bias")),
    gguf_packed=_STACKED,
    names=(*NAMES, *EXPERT_NAMES, *QK_NORM_NAMES),
    description=Description(
        blocks=Blocks(
            norm_eps=1e-5,
            qk_norm="width",
            qkv_bias="attention_bias",
            output_bias="attention_bias",
            experts=Experts(("num_experts", "num_local_experts"), "experts"),
        ),
    ),
)
