"""A pruned Llama, or kin of it, for transformers: every layer has a shape of its own.

This file goes with a model that Slimformer exported and needs nothing but torch and transformers.
``config.json`` says under ``slimformer`` what each layer is: its heads and which KV head each of
them reads, its neurons, or a linear map (a link) in place of either; ``null`` is a sub-block that
was removed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
"""What this version of transformers calls the keys and values that it keeps."""


class SlimformerConfig(PretrainedConfig):
    """The sizes that all layers share, and under ``slimformer`` what each layer is."""

    model_type = "slimformer"

    def __init__(self, slimformer: dict[str, Any] | None = None, **settings: Any) -> None:
        self.slimformer = slimformer or {"schema": 1, "layers": [], "norm_divisor": 1}
        self.vocab_size = settings.pop("vocab_size", 1)
        self.hidden_size = settings.pop("hidden_size", 1)
        self.num_hidden_layers = settings.pop("num_hidden_layers", 0)
        self.rms_norm_eps = settings.pop("rms_norm_eps", 1e-5)
        self.max_position_embeddings = settings.pop("max_position_embeddings", 1)
        super().__init__(**settings)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
}


class Norm(nn.Module):
    """RMSNorm of the stream, which divides by the width that the model was trained with."""

    def __init__(self, config: SlimformerConfig, head_dim: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(head_dim or config.hidden_size))
        self.divisor = head_dim or config.slimformer["norm_divisor"]
        self.offset = config.slimformer.get("norm_offset", 0.0)
        self.eps = config.rms_norm_eps

    def forward(self, values: Tensor) -> Tensor:
        x = values.float()
        mean_square = x.square().sum(-1, keepdim=True) / self.divisor
        return (x * torch.rsqrt(mean_square + self.eps)).to(values.dtype) * (
            self.weight + self.offset
        )


class Attention(nn.Module):
    """Causal attention of any number of query heads on any KV heads."""

    def __init__(self, config: SlimformerConfig, shape: dict[str, Any], cache_index: int) -> None:
        super().__init__()
        d, bias = config.hidden_size, shape["qkv_bias"]
        self.shape, self.cache_index = shape, cache_index
        self.q_proj = nn.Linear(d, shape["n_heads"] * shape["head_dim"], bias=bias)
        self.k_proj = nn.Linear(d, shape["n_kv_heads"] * shape["head_dim"], bias=bias)
        self.v_proj = nn.Linear(d, shape["n_kv_heads"] * shape["value_dim"], bias=bias)
        self.o_proj = nn.Linear(shape["n_heads"] * shape["value_dim"], d, bias=shape["output_bias"])
        if "qk_norm" in shape:
            self.q_norm = Norm(config, shape["head_dim"])
            self.k_norm = Norm(config, shape["head_dim"])

    def forward(self, x: Tensor, step: Step) -> Tensor:
        shape = self.shape
        q = self.q_proj(x).unflatten(-1, (shape["n_heads"], -1)).transpose(1, 2)
        k = self.k_proj(x).unflatten(-1, (shape["n_kv_heads"], -1)).transpose(1, 2)
        v = self.v_proj(x).unflatten(-1, (shape["n_kv_heads"], -1)).transpose(1, 2)
        if "qk_norm" in shape:
            q, k = self.q_norm(q), self.k_norm(k)
        if shape["rope"] is not None:
            q, k = step.rotate(shape["rope"], q), step.rotate(shape["rope"], k)
        if step.cache is not None:
            k, v = step.cache.update(k, v, self.cache_index)
        if shape["q_to_kv"] != list(range(shape["n_kv_heads"])):
            reads = torch.tensor(shape["q_to_kv"], device=x.device)
            k, v = k[:, reads], v[:, reads]
        mask, is_causal = step.mask(shape.get("window"))
        heads = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=is_causal, scale=shape["scale"]
        )
        return self.o_proj(heads.transpose(1, 2).flatten(2))


class Ffn(nn.Module):
    """``down(activation(gate(x)) * up(x))``."""

    def __init__(self, config: SlimformerConfig, shape: dict[str, Any]) -> None:
        super().__init__()
        d, neurons, bias = config.hidden_size, shape["n_neurons"], shape["bias"]
        self.activation = ACTIVATIONS[shape.get("activation", "silu")]
        self.gate_proj = nn.Linear(d, neurons, bias=bias)
        self.up_proj = nn.Linear(d, neurons, bias=bias)
        self.down_proj = nn.Linear(neurons, d, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


class Link(nn.Module):
    """A linear map in place of a sub-block: full, of low rank, or one factor a channel."""

    def __init__(self, config: SlimformerConfig, shape: dict[str, Any]) -> None:
        super().__init__()
        d, rank, self.kind = config.hidden_size, shape["rank"], shape["link"]
        if self.kind == "low_rank":
            self.down = nn.Parameter(torch.zeros(rank, d))
            self.up = nn.Parameter(torch.zeros(d, rank))
        else:
            self.weight = nn.Parameter(torch.zeros((d, d) if self.kind == "full" else (d,)))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "low_rank":
            return F.linear(F.linear(x, self.down), self.up)
        return F.linear(x, self.weight) if self.kind == "full" else x * self.weight


class Layer(nn.Module):
    """An attention and an FFN, either of which may be a link or not be there."""

    def __init__(self, config: SlimformerConfig, shape: dict[str, Any], cache_index: int) -> None:
        super().__init__()
        attention, ffn = shape["attention"], shape["ffn"]
        if attention is not None:
            self.input_layernorm = Norm(config)
            if "link" in attention:
                self.attention_link = Link(config, attention)
            else:
                self.self_attn = Attention(config, attention, cache_index)
        if ffn is not None:
            self.post_attention_layernorm = Norm(config)
            if "link" in ffn:
                self.mlp_link = Link(config, ffn)
            else:
                self.mlp = Ffn(config, ffn)

    def forward(self, stream: Tensor, step: Step) -> Tensor:
        if hasattr(self, "self_attn"):
            stream = stream + self.self_attn(self.input_layernorm(stream), step)
        elif hasattr(self, "attention_link"):
            stream = stream + self.attention_link(self.input_layernorm(stream))
        if hasattr(self, "mlp"):
            stream = stream + self.mlp(self.post_attention_layernorm(stream))
        elif hasattr(self, "mlp_link"):
            stream = stream + self.mlp_link(self.post_attention_layernorm(stream))
        return stream


class Step:
    """What the layers share in one forward pass: positions, the cache and who sees whom.

    ``positions`` are [sequences, tokens].
    """

    def __init__(self, positions: Tensor, cache: Any, n_past: int, padding: Tensor | None) -> None:
        self.positions, self.cache, self.n_past = positions, cache, n_past
        self.padding = None if padding is None or bool(padding.all()) else padding
        self._tables: dict[str, tuple[Tensor, Tensor]] = {}
        self._masks: dict[int | None, tuple[Tensor | None, bool]] = {}

    def mask(self, window: int | None) -> tuple[Tensor | None, bool]:
        """What attention may see, [sequences or 1, 1, tokens, all so far], and if that is causal.

        With a window a token sees itself and the ``window - 1`` before it.
        """
        if window not in self._masks:
            self._masks[window] = self._make_mask(window)
        return self._masks[window]

    def _make_mask(self, window: int | None) -> tuple[Tensor | None, bool]:
        n_past, n_new = self.n_past, self.positions.shape[-1]
        all_seen = self.padding is None and (window is None or window >= n_past + n_new)
        if all_seen and (n_past == 0 or n_new == 1):
            return None, n_past == 0
        keys = torch.arange(n_past + n_new, device=self.positions.device)
        own = keys[n_past:, None]
        seen = keys <= own
        if window is not None:
            seen = seen & (keys > own - window)
        seen = seen[None, None]
        if self.padding is not None:
            # A token of padding sees itself: a softmax over nothing would be NaN.
            seen = seen & (self.padding[:, None, None, : len(keys)].bool() | (keys == own))
        return seen, False

    def rotate(self, rope: dict[str, Any], x: Tensor) -> Tensor:
        """Turn pairs (j, j + rotary_dim / 2) of [sequences, heads, tokens, head_dim]."""
        if str(rope) not in self._tables:
            frequencies = inverse_frequencies(rope).to(x.device)
            angles = self.positions[:, None, :, None].float() * frequencies
            self._tables[str(rope)] = angles.cos(), angles.sin()
        cosine, sine = self._tables[str(rope)]
        half = rope["rotary_dim"] // 2
        first, second, rest = x.float().split((half, half, x.shape[-1] - 2 * half), dim=-1)
        turned = (first * cosine - second * sine, second * cosine + first * sine, rest)
        return torch.cat(turned, dim=-1).to(x.dtype)


def inverse_frequencies(rope: dict[str, Any]) -> Tensor:
    """Radians per position of each rotary pair, [rotary_dim / 2]."""
    exponents = torch.arange(0, rope["rotary_dim"], 2, dtype=torch.float32) / rope["rotary_dim"]
    plain, scaling = 1.0 / rope["theta"] ** exponents, rope["scaling"]
    if scaling is None:
        return plain
    if scaling["type"] == "linear":
        return plain / scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_positions"] * plain / (2 * math.pi)
    smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - smooth) * plain / scaling["factor"] + smooth * plain


class Layers(nn.Module):
    """Embedding, layers and the last norm."""

    def __init__(self, config: SlimformerConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList()
        cached = 0  # layers without attention keep no keys and values
        for shape in config.slimformer["layers"]:
            self.layers.append(Layer(config, shape, cached))
            cached += "n_heads" in (shape["attention"] or {})
        self.norm = Norm(config)


class SlimformerForCausalLM(PreTrainedModel, GenerationMixin):
    """A language model of layers that all differ."""

    config_class = SlimformerConfig
    base_model_prefix = "model"
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012
    _supports_sdpa = True

    def __init__(self, config: SlimformerConfig) -> None:
        super().__init__(config)
        if config.slimformer["schema"] != 1:
            raise ValueError("this model was written by another version of Slimformer")
        self.model = Layers(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        cache: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **others: Any,
    ) -> CausalLMOutputWithPast:
        stream = self.model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        cache = past_key_values if cache is None else cache
        if cache is None and use_cache:
            cache = DynamicCache()
        n_past = 0 if cache is None else cache.get_seq_length()
        if position_ids is None:
            end = n_past + stream.shape[1]
            position_ids = torch.arange(n_past, end, device=stream.device)[None]
        stream = stream * self.config.slimformer.get("embedding_scale", 1.0)
        step = Step(position_ids, cache, n_past, attention_mask)
        for layer in self.model.layers:
            stream = layer(stream, step)
        logits = self.lm_head(self.model.norm(stream[:, -logits_to_keep:]))
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **others
            )
        return CausalLMOutputWithPast(loss=loss, logits=logits, **{CACHE: cache})
