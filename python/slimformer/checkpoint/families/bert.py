"""BERT, RoBERTa and DistilBERT: encoders, with norms of the stream after every sub-block."""

from __future__ import annotations

import dataclasses

from slimformer.checkpoint.families.description import Blocks, Description, Keys
from slimformer.checkpoint.families.family import Family, named

_KEYS = Keys(kv_heads=None, head_dim=None, norm_eps="layer_norm_eps")

_BLOCKS = Blocks(
    norm="layer",
    norm_place="stream",
    norm_eps=1e-12,
    embedding_norm=True,
    final_norm=False,
    qkv_bias=True,
    output_bias=True,
    ffn_bias=True,
    activation="gelu",
    gated=False,
    rope=None,
    learned_positions=True,
    token_types="type_vocab_size",
    tied_head=True,
    causal=False,
)

_NEUTRAL = {
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "tie_word_embeddings": (True, False),  # there is no head
}

_NAMES = named(
    ("embedding", "embeddings.word_embeddings", "token_embd"),
    ("positions", "embeddings.position_embeddings", "position_embd"),
    ("token_types", "embeddings.token_type_embeddings", "token_types"),
    ("embedding_norm", "embeddings.LayerNorm", "token_embd_norm"),
    ("layers.{i}.attention.q", "encoder.layer.{i}.attention.self.query", "blk.{i}.attn_q"),
    ("layers.{i}.attention.k", "encoder.layer.{i}.attention.self.key", "blk.{i}.attn_k"),
    ("layers.{i}.attention.v", "encoder.layer.{i}.attention.self.value", "blk.{i}.attn_v"),
    (
        "layers.{i}.attention.o",
        "encoder.layer.{i}.attention.output.dense",
        "blk.{i}.attn_output",
    ),
    (
        "layers.{i}.attention.post_norm",
        "encoder.layer.{i}.attention.output.LayerNorm",
        "blk.{i}.attn_output_norm",
    ),
    ("layers.{i}.ffn.up", "encoder.layer.{i}.intermediate.dense", "blk.{i}.ffn_up"),
    ("layers.{i}.ffn.down", "encoder.layer.{i}.output.dense", "blk.{i}.ffn_down"),
    (
        "layers.{i}.ffn.post_norm",
        "encoder.layer.{i}.output.LayerNorm",
        "blk.{i}.layer_output_norm",
    ),
)

_NOT_RUN = ("position_ids", "pooler.dense.weight", "pooler.dense.bias")
"""A buffer, and a layer on top that sentence encoders do not use."""

BERT = Family(
    name="bert",
    huggingface_type="bert",
    huggingface_class="BertModel",
    gguf_architecture="bert",
    gguf_lacks=frozenset(("width",)),
    names=_NAMES,
    buffers=_NOT_RUN,
    description=Description(_KEYS, _BLOCKS, _NEUTRAL),
)

ROBERTA = Family(
    name="roberta",
    huggingface_type="roberta",
    huggingface_class="RobertaModel",
    gguf_architecture=None,  # its files say bert
    names=_NAMES,
    buffers=_NOT_RUN,
    description=Description(
        _KEYS,
        dataclasses.replace(_BLOCKS, position_offset=2, positions_with_offset=True),
        {**_NEUTRAL, "pad_token_id": (1,)},  # positions begin after it
        written={"pad_token_id": 1},
    ),
)

DISTILBERT = Family(
    name="distilbert",
    huggingface_type="distilbert",
    huggingface_class="DistilBertModel",
    gguf_architecture=None,  # its files say bert
    names=named(
        ("embedding", "embeddings.word_embeddings", None),
        ("positions", "embeddings.position_embeddings", None),
        ("embedding_norm", "embeddings.LayerNorm", None),
        ("layers.{i}.attention.q", "transformer.layer.{i}.attention.q_lin", None),
        ("layers.{i}.attention.k", "transformer.layer.{i}.attention.k_lin", None),
        ("layers.{i}.attention.v", "transformer.layer.{i}.attention.v_lin", None),
        ("layers.{i}.attention.o", "transformer.layer.{i}.attention.out_lin", None),
        ("layers.{i}.attention.post_norm", "transformer.layer.{i}.sa_layer_norm", None),
        ("layers.{i}.ffn.up", "transformer.layer.{i}.ffn.lin1", None),
        ("layers.{i}.ffn.down", "transformer.layer.{i}.ffn.lin2", None),
        ("layers.{i}.ffn.post_norm", "transformer.layer.{i}.output_layer_norm", None),
    ),
    buffers=_NOT_RUN,
    description=Description(
        Keys(
            channels="dim",
            layers="n_layers",
            heads="n_heads",
            kv_heads=None,
            head_dim=None,
            neurons="hidden_dim",
            norm_eps=None,
            activation="activation",
        ),
        dataclasses.replace(_BLOCKS, token_types=0),
        _NEUTRAL,
    ),
)
