"""What tells one family of decoders from another, as data.

Readers and writers of both formats work from these descriptions alone. A field that holds the
name of a setting takes what the model's own settings say.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from slimformer.config import NormKind, NormPlace, QkNorm, SoftmaxOver


@dataclasses.dataclass(frozen=True)
class Keys:
    """What a family calls its settings in ``config.json``; ``None`` for what it does not say."""

    channels: str = "hidden_size"
    layers: str = "num_hidden_layers"
    heads: str = "num_attention_heads"
    kv_heads: str | None = "num_key_value_heads"
    head_dim: str | None = "head_dim"
    neurons: str = "intermediate_size"
    positions: str = "max_position_embeddings"
    norm_eps: str | None = "rms_norm_eps"
    activation: str = "hidden_act"
    score_scale: str | None = None  # s for scores multiplied by s^-1/2, the head width by default
    attention_cap: str | None = None
    logit_cap: str | None = None


@dataclasses.dataclass(frozen=True)
class Ropes:
    """Rotary positions: base, rotated share of a head, and layers that have their own or none."""

    theta: float = 10000.0
    theta_key: str = "rope_theta"
    share: float = 1.0
    share_key: str | None = None
    window_key: str | None = None  # the base of layers with a window, where it is another
    skips: bool = False  # ``no_rope_layers``: 0 for a layer without rotation
    scaling_aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)  # of rope types


@dataclasses.dataclass(frozen=True)
class Windows:
    """Layers with a sliding window, where ``layer_types`` does not list them.

    Every ``full_every``-th layer sees all, none if that is 0; so do the layers before the one
    that ``first_key`` names.
    """

    key: str = "sliding_window"
    switch: str | None = None  # a setting without which there is no window
    full_every: int = 0
    full_every_key: str | None = None
    first_key: str | None = None
    listed: bool = True  # whether the family's class knows ``layer_types``


@dataclasses.dataclass(frozen=True)
class Experts:
    """FFNs that consist of experts.

    ``counts`` are what the number of experts may be called, the first what it is called when it
    is written. ``softmax_over`` ``None``: over the chosen ones where ``norm_topk_prob`` says so.
    GGUF has no such setting: there it is ``gguf_softmax_over``.
    """

    counts: tuple[str, ...]
    gguf_softmax_over: SoftmaxOver
    softmax_over: SoftmaxOver | None = None
    top_k: str = "num_experts_per_tok"
    gguf_neurons: str = "feed_forward_length"


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The structure of every layer, and of what lies before and after them."""

    norm: NormKind = "rms"
    norm_place: NormPlace = "before"
    embedding_norm: bool = False
    final_norm: bool = True
    norm_offset: float = 0.0
    norm_eps: float = 1e-6
    qk_norm: QkNorm | None = None
    qkv_bias: bool | str = False
    output_bias: bool | str = False
    ffn_bias: bool | str = False
    activation: str = "silu"
    gated: bool = True
    parallel: bool | str = False
    rope: Ropes | None = dataclasses.field(default_factory=Ropes)
    windows: Windows | None = None
    experts: Experts | None = None
    scaled_embedding: bool = False  # by the root of the number of channels
    learned_positions: bool = False
    position_offset: int = 0
    positions_with_offset: bool = False  # whether the settings' number of positions includes it
    token_types: int | str = 0
    causal: bool = True
    tied_head: bool = False  # where the settings do not say
    neurons_per_channel: int | None = None  # where the settings do not say


@dataclasses.dataclass(frozen=True)
class Description:
    """One family's settings and blocks.

    ``neutral`` are settings that change the computation, with the values (besides null) that
    this family is run with; ``as_wide_as_channels`` are sizes that must equal the width of the
    residual stream; ``written`` are settings that say nothing of the shape, but that the family's
    class in ``transformers`` needs.
    """

    keys: Keys = dataclasses.field(default_factory=Keys)
    blocks: Blocks = dataclasses.field(default_factory=Blocks)
    neutral: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    as_wide_as_channels: tuple[str, ...] = ()
    written: Mapping[str, Any] = dataclasses.field(default_factory=dict)


ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
}
"""What ``config.json`` calls the activations."""

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "sliding_window": (),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "query_pre_attn_scalar": (),
    "partial_rotary_factor": (1, 1.0),
    "rope_interleaved": (False,),
    "rope_local_base_freq": (),
    "quantization_config": (),
    "num_local_experts": (0, 1),
    "num_experts": (0,),
    "shared_expert_intermediate_size": (0,),
    "n_shared_experts": (0,),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "attention_multiplier": (),
    "embedding_multiplier": (1, 1.0),
    "residual_multiplier": (1, 1.0),
    "logits_scaling": (1, 1.0),
    "logit_scale": (1, 1.0),
    "no_rope_layers": ([],),
    "use_parallel_residual": (False,),
    "use_qk_norm": (False,),
    "clip_qkv": (),
    "alibi": (False,),
    "use_bidirectional_attention": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
}
"""Settings that change the computation, with the values (besides null) that leave it alone, for
every family that does not read them."""
