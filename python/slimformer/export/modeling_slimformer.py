"""A pruned Transformer for transformers: every layer has a shape of its own.

This file goes with a model that Slimformer exported and needs nothing but torch and transformers.
``config.json`` says under ``slimformer`` what the model is, and what each layer: its heads and
which KV head each reads, its neurons, or those of each expert, or a link in place of either, a
linear map or a constant; ``null`` is a sub-block that went. What is not said has its default here.
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
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
"""What this version of transformers calls the keys and values that it keeps."""

PARTS = {
    "attention": ("input_layernorm", "self_attn", "attention_link", "attention_post_norm"),
    "ffn": ("post_attention_layernorm", "mlp", "mlp_link", "mlp_post_norm"),
}
"""Of each sub-block: the norm before it, itself, the link in its place, and the norm after it."""


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
    """RMSNorm, which divides by the width that the model was trained with, or LayerNorm."""

    def __init__(
        self, config: SlimformerConfig, width: int | None = None, divisor: int | None = None
    ) -> None:
        super().__init__()
        width = width or config.hidden_size
        self.weight = nn.Parameter(torch.ones(width))
        centred = config.slimformer.get("norm") == "layer"
        self.bias = nn.Parameter(torch.zeros(width)) if centred else None
        self.divisor = divisor or config.slimformer["norm_divisor"]
        self.offset = config.slimformer.get("norm_offset", 0.0)
        self.eps = config.rms_norm_eps

    def forward(self, values: Tensor) -> Tensor:
        x = values.float()
        if self.bias is not None:
            x = x - x.mean(-1, keepdim=True)
        mean_square = x.square().sum(-1, keepdim=True) / self.divisor
        x = (x * torch.rsqrt(mean_square + self.eps)).to(values.dtype)
        x = x * (self.weight + self.offset)
        return x if self.bias is None else x + self.bias


class Attention(nn.Module):
    """Attention of any number of query heads on any KV heads."""

    def __init__(self, config: SlimformerConfig, shape: dict[str, Any], cache_index: int) -> None:
        super().__init__()
        d, bias = config.hidden_size, shape["qkv_bias"]
        self.shape, self.cache_index = shape, cache_index
        width, k_width = (shape[n] * shape["head_dim"] for n in ("n_heads", "n_kv_heads"))
        self.q_proj = nn.Linear(d, width, bias=bias)
        self.k_proj = nn.Linear(d, k_width, bias=bias)
        self.v_proj = nn.Linear(d, shape["n_kv_heads"] * shape["value_dim"], bias=bias)
        self.o_proj = nn.Linear(shape["n_heads"] * shape["value_dim"], d, bias=shape["output_bias"])
        self.qk_norm = shape.get("qk_norm")  # of each head, or of all as one vector
        if self.qk_norm == "head":
            self.q_norm = Norm(config, shape["head_dim"], shape["head_dim"])
            self.k_norm = Norm(config, shape["head_dim"], shape["head_dim"])
        elif self.qk_norm == "width":
            self.q_norm = Norm(config, width, shape["q_norm_divisor"])
            self.k_norm = Norm(config, k_width, shape["k_norm_divisor"])

    def forward(self, x: Tensor, step: Step) -> Tensor:
        shape = self.shape
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if self.qk_norm == "width":
            q, k = self.q_norm(q), self.k_norm(k)
        q = q.unflatten(-1, (shape["n_heads"], -1)).transpose(1, 2)
        k = k.unflatten(-1, (shape["n_kv_heads"], -1)).transpose(1, 2)
        v = v.unflatten(-1, (shape["n_kv_heads"], -1)).transpose(1, 2)
        if self.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        if shape["rope"] is not None:
            q, k = step.rotate(shape["rope"], q), step.rotate(shape["rope"], k)
        if step.cache is not None:
            k, v = step.cache.update(k, v, self.cache_index)
        if shape["q_to_kv"] != list(range(shape["n_kv_heads"])):
            reads = torch.tensor(shape["q_to_kv"], device=x.device)
            k, v = k[:, reads], v[:, reads]
        heads = self.attend(q, k, v, step.mask(shape.get("window")))
        return self.o_proj(heads.transpose(1, 2).flatten(2))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        scale, cap = self.shape["scale"], self.shape.get("soft_cap")
        if cap is None:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        scores = cap * torch.tanh(q @ k.transpose(-1, -2) * (scale / cap))
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        return scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v


class Ffn(nn.Module):
    """``down(activation(gate(x)) * up(x))``, or ``down(activation(up(x)))`` without gate."""

    def __init__(self, config: SlimformerConfig, shape: dict[str, Any]) -> None:
        super().__init__()
        d, neurons, bias = config.hidden_size, shape["n_neurons"], shape["bias"]
        self.activation = ACTIVATIONS[shape.get("activation", "silu")]
        self.gate_proj = nn.Linear(d, neurons, bias=bias) if shape.get("gated", True) else None
        self.up_proj = nn.Linear(d, neurons, bias=bias)
        self.down_proj = nn.Linear(neurons, d, bias=bias)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        if self.gate_proj is None:
            return self.down_proj(self.activation(self.up_proj(x)))
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


class Experts(nn.Module):
    """FFNs of any width, of which a token runs the few that the router gives most."""

    def __init__(self, config: SlimformerConfig, shape: dict[str, Any]) -> None:
        super().__init__()
        widths, self.top_k = shape["experts"], shape["top_k"]
        self.over_chosen = shape.get("softmax_over", "chosen") == "chosen"
        own = {"bias": False, "activation": shape.get("activation", "silu")}
        self.gate = nn.Linear(config.hidden_size, len(widths), bias=False)
        self.experts = nn.ModuleList(Ffn(config, {**own, "n_neurons": n}) for n in widths)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        logits = self.gate(x).float()
        chosen, experts = logits.topk(self.top_k, dim=-1)
        total = (chosen if self.over_chosen else logits).logsumexp(-1, keepdim=True)
        weights, added = (chosen - total).exp().to(x.dtype), torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            runs = experts == index  # [..., top_k], once in a row at most
            rows = runs.any(-1)
            if rows.any():
                added[rows] += expert(x[rows], step) * weights[runs][:, None]
        return added


class Link(nn.Module):
    """In place of a sub-block: a matrix, one of low rank, one factor a channel, or a constant."""

    def __init__(self, config: SlimformerConfig, shape: dict[str, Any]) -> None:
        super().__init__()
        d, rank, self.kind = config.hidden_size, shape["rank"], shape["link"]
        if self.kind == "low_rank":
            self.down = nn.Parameter(torch.zeros(rank, d))
            self.up = nn.Parameter(torch.zeros(d, rank))
        elif self.kind == "constant":
            self.bias = nn.Parameter(torch.zeros(d))
        else:
            self.weight = nn.Parameter(torch.zeros((d, d) if self.kind == "full" else (d,)))

    def forward(self, x: Tensor, step: Step) -> Tensor:
        if self.kind == "low_rank":
            return F.linear(F.linear(x, self.down), self.up)
        if self.kind == "constant":
            return self.bias
        return F.linear(x, self.weight) if self.kind == "full" else x * self.weight


class Layer(nn.Module):
    """An attention and an FFN, either of which may be a link or not be there."""

    def __init__(self, config: SlimformerConfig, shape: dict[str, Any], cache_index: int) -> None:
        super().__init__()
        self.parallel = shape.get("parallel", False)  # both read what enters the layer
        self.places: dict[str, str] = {}  # of norms: before, after, both, or of the whole stream
        for kind, (norm, body, link, post_norm) in PARTS.items():
            part = shape[kind]
            if part is None:
                continue
            self.places[kind] = part.get("norm_place", "before")
            if part.get("link") != "constant" and self.places[kind] in ("before", "both"):
                setattr(self, norm, Norm(config))
            if self.places[kind] != "before":
                setattr(self, post_norm, Norm(config))
            if "link" in part:
                setattr(self, link, Link(config, part))
            elif kind == "attention":
                setattr(self, body, Attention(config, part, cache_index))
            else:
                setattr(self, body, (Experts if "experts" in part else Ffn)(config, part))

    def forward(self, stream: Tensor, step: Step) -> Tensor:
        entry = stream
        for kind, place in self.places.items():
            norm, body, link, post_norm = PARTS[kind]
            x = entry if self.parallel else stream
            if hasattr(self, norm):
                x = getattr(self, norm)(x)
            x = getattr(self, body if hasattr(self, body) else link)(x, step)
            if place in ("after", "both"):
                x = getattr(self, post_norm)(x)
            stream = stream + x
            if place == "stream":
                stream = getattr(self, post_norm)(stream)
        return stream


class Step:
    """What the layers share in one forward pass: positions, the cache and who sees whom.

    ``positions`` are [sequences, tokens].
    """

    def __init__(
        self, positions: Tensor, cache: Any, n_past: int, padding: Tensor | None, *, causal: bool
    ) -> None:
        self.positions, self.cache, self.n_past, self.causal = positions, cache, n_past, causal
        self.padding = None if padding is None or bool(padding.all()) else padding
        self.n_all = n_past + positions.shape[-1]
        self._tables: dict[str, tuple[Tensor, Tensor]] = {}
        self._masks: dict[int | None, Tensor | None] = {}

    def mask(self, window: int | None) -> Tensor | None:
        """What attention may see, [sequences or 1, 1, tokens, all so far]; ``None``: everything.

        With a window a token sees itself and the ``window - 1`` before it.
        """
        if window not in self._masks:
            self._masks[window] = self._make_mask(window)
        return self._masks[window]

    def _make_mask(self, window: int | None) -> Tensor | None:
        all_before = not self.causal or self.n_past == self.n_all - 1
        if all_before and self.padding is None and (window is None or window >= self.n_all):
            return None
        keys = torch.arange(self.n_all, device=self.positions.device)
        own = keys[self.n_past :, None]
        seen = keys <= own if self.causal else torch.ones_like(keys <= own)
        if window is not None:
            seen = seen & (keys > own - window)
        seen = seen[None, None]
        if self.padding is not None:
            # A token of padding sees itself: a softmax over nothing would be NaN.
            seen = seen & (self.padding[:, None, None, : len(keys)].bool() | (keys == own))
        return seen

    def rotate(self, rope: dict[str, Any], x: Tensor) -> Tensor:
        """Turn pairs (j, j + rotary_dim / 2) of [sequences, heads, tokens, head_dim]."""
        if str(rope) not in self._tables:
            frequencies = inverse_frequencies(rope, self.n_all).to(x.device)
            angles = self.positions[:, None, :, None].float() * frequencies
            amplitude = (rope["scaling"] or {}).get("attention_factor", 1.0)
            self._tables[str(rope)] = angles.cos() * amplitude, angles.sin() * amplitude
        cosine, sine = self._tables[str(rope)]
        half = rope["rotary_dim"] // 2
        first, second, rest = x.float().split((half, half, x.shape[-1] - 2 * half), dim=-1)
        turned = (first * cosine - second * sine, second * cosine + first * sine, rest)
        return torch.cat(turned, dim=-1).to(x.dtype)


def inverse_frequencies(rope: dict[str, Any], length: int) -> Tensor:
    """Radians per position of each rotary pair in a text of that length, [rotary_dim / 2]."""
    if rope.get("kept"):  # pairs that went have left those of the others as they were
        trained = {**rope, "rotary_dim": rope["kept"]["trained_dim"], "kept": None}
        return inverse_frequencies(trained, length)[rope["kept"]["pairs"]]
    dim, theta, scaling = rope["rotary_dim"], rope["theta"], rope["scaling"] or {"type": None}
    plain = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    kind, factor = scaling["type"], scaling.get("factor")
    if kind == "linear":
        return plain / factor
    if kind == "longrope":
        long = length > scaling["original_max_positions"]
        return plain / torch.tensor(scaling["long_factors" if long else "short_factors"])
    if kind == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        turns = scaling["original_max_positions"] * plain / (2 * math.pi)
        kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
        return (1 - kept) * plain / factor + kept * plain
    if kind == "yarn":
        turns_of = scaling["original_max_positions"] / (2 * math.pi)
        low, high = (
            dim * math.log(turns_of / scaling[beta]) / (2 * math.log(theta))
            for beta in ("beta_fast", "beta_slow")
        )
        if scaling["truncated"]:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        ramp = (torch.arange(dim // 2) - low) / ((high - low) or 0.001)
        kept = 1 - ramp.clamp(0.0, 1.0)
        return (1 - kept) * plain / factor + kept * plain
    return plain  # dynamic scaling changes nothing up to the model's limit


class SlimformerPreTrainedModel(PreTrainedModel):
    """What the classes below share."""

    config_class = SlimformerConfig
    base_model_prefix = "model"
    _supports_sdpa = True


class SlimformerModel(SlimformerPreTrainedModel):
    """Embedding, layers and the last norm: the encoder, or the body of the language model."""

    def __init__(self, config: SlimformerConfig) -> None:
        super().__init__(config)
        own = config.slimformer
        if own["schema"] != 1:
            raise ValueError("this model was written by another version of Slimformer")
        d, self.offset = config.hidden_size, own.get("position_offset", 0)
        self.embed_tokens = nn.Embedding(config.vocab_size, d)
        if own.get("learned_positions"):
            self.embed_positions = nn.Embedding(config.max_position_embeddings + self.offset, d)
        if own.get("token_types"):
            self.embed_token_types = nn.Embedding(own["token_types"], d)
        if own.get("embedding_norm"):
            self.embed_norm = Norm(config)
        self.layers = nn.ModuleList()
        cached = 0  # layers without attention keep no keys and values
        for shape in own["layers"]:
            self.layers.append(Layer(config, shape, cached))
            cached += "n_heads" in (shape["attention"] or {})
        self.norm = Norm(config) if own.get("final_norm", True) else nn.Identity()
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed_tokens

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        cache: Any = None,
        inputs_embeds: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        use_cache: bool | None = None,
        **others: Any,
    ) -> BaseModelOutputWithPast:
        own = self.config.slimformer
        causal = own.get("causal", True)
        stream = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        cache = past_key_values if cache is None else cache
        if cache is None and use_cache and causal:
            cache = DynamicCache()
        n_past = 0 if cache is None else cache.get_seq_length()
        if position_ids is None:
            end = n_past + stream.shape[1]
            position_ids = torch.arange(n_past, end, device=stream.device)[None]
        stream = stream * own.get("embedding_scale", 1.0)
        if hasattr(self, "embed_positions"):
            stream = stream + self.embed_positions(position_ids + self.offset)
        if hasattr(self, "embed_token_types"):
            types = torch.zeros_like(position_ids) if token_type_ids is None else token_type_ids
            stream = stream + self.embed_token_types(types)
        if hasattr(self, "embed_norm"):
            stream = self.embed_norm(stream)
        step = Step(position_ids, cache, n_past, attention_mask, causal=causal)
        for layer in self.layers:
            stream = layer(stream, step)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(stream), **{CACHE: cache})


class SlimformerForCausalLM(SlimformerPreTrainedModel, GenerationMixin):
    """A language model of layers that all differ."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: SlimformerConfig) -> None:
        super().__init__(config)
        self.model = SlimformerModel(config)
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
        body = self.model(
            input_ids,
            attention_mask,
            position_ids,
            cache=past_key_values if cache is None else cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
        )
        logits = self.lm_head(body.last_hidden_state[:, -logits_to_keep:])
        if (cap := self.config.slimformer.get("logit_soft_cap")) is not None:
            logits = cap * torch.tanh(logits / cap)
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **others
            )
        return CausalLMOutputWithPast(loss=loss, logits=logits, **{CACHE: getattr(body, CACHE)})

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> Any:
        """With LongRoPE, all keys of a text that has become a long one are made again."""
        past = kwargs.get(CACHE)
        if past is not None and past.get_seq_length() <= self._usual_length() < input_ids.shape[1]:
            kwargs |= {CACHE: None, "next_sequence_length": None}
        return super().prepare_inputs_for_generation(input_ids, **kwargs)

    def _usual_length(self) -> float:
        layers = self.config.slimformer["layers"]
        ropes = [(layer["attention"] or {}).get("rope") or {} for layer in layers]
        scalings = [rope.get("scaling") or {} for rope in ropes]
        lengths = [s["original_max_positions"] for s in scalings if s.get("type") == "longrope"]
        return min(lengths, default=math.inf)
