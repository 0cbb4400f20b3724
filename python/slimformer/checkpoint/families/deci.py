"""``deci``: how GGUF says a Llama whose layers differ.

Each layer has its own number of heads, KV heads and neurons, or none of them. Heads without KV
heads stand for a linear map of the normalised input in place of attention: a full link.
"""

from __future__ import annotations

import dataclasses

from slimformer.checkpoint.families.family import named
from slimformer.checkpoint.families.llama import LLAMA

DECI = dataclasses.replace(
    LLAMA,
    gguf_architecture="deci",
    # A layer has a link or an output-projection, and both go by one name.
    names=named(
        ("layers.{i}.attention.link", "model.layers.{i}.attention_link", "blk.{i}.attn_output"),
        base=LLAMA.names,
    ),
    gguf_ragged=True,
)
