"""Qwen 2 and 2.5: biased queries, keys and values. Qwen 3: normalised queries and keys."""

from __future__ import annotations

from slimformer.checkpoint.families.description import Blocks, Description, Windows
from slimformer.checkpoint.families.family import Family
from slimformer.checkpoint.families.llama import NAMES, QK_NORM_NAMES

_WINDOWS = Windows(switch="use_sliding_window", first_key="max_window_layers")

QWEN2 = Family(
    name="qwen2",
    huggingface_type="qwen2",
    huggingface_class="Qwen2ForCausalLM",
    gguf_architecture="qwen2",
    gguf_lacks=frozenset(
        (
            "width",
            "window",
        )
    ),
    names=NAMES,
    description=Description(blocks=Blocks(qkv_bias=True, windows=_WINDOWS)),
)

QWEN3 = Family(
    name="qwen3",
    huggingface_type="qwen3",
    huggingface_class="Qwen3ForCausalLM",
    gguf_architecture="qwen3",
    gguf_lacks=frozenset(("window",)),
    names=(*NAMES, *QK_NORM_NAMES),
    description=Description(
        blocks=Blocks(
            qk_norm="head",
            qkv_bias="attention_bias",
            output_bias="attention_bias",
            windows=_WINDOWS,
        ),
    ),
)
