"""A ragged model as an ``nn.Module``: the forward pass of ``config.py``'s shapes, to be trained.

Parameters carry the names of the checkpoint's tensors. Sequences of one length are computed side
by side, from position 0; there is no cache. Under ``torch.autocast`` matrix products run in the
lower precision, the residual stream and the norms in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from slimformer.config import (
    AttentionConfig,
    FfnConfig,
    LinkConfig,
    ModelConfig,
    RopeConfig,
    RoutedFfnConfig,
)
from slimformer.train.attention import attend, soft_cap


class TorchModel(nn.Module):
    """Any model that a ``ModelConfig`` describes.

    Called with token ids [sequences, tokens] it gives logits [sequences, tokens, vocab_size].
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.n_channels)
        if config.learned_positions:
            rows = config.max_positions + config.position_offset
            self.positions = nn.Embedding(rows, config.n_channels)
        if config.token_types:
            self.token_types = nn.Embedding(config.token_types, config.n_channels)
        if config.embedding_norm:
            self.embedding_norm = _Norm(config)
        self.layers = nn.ModuleList(_Layer(config, index) for index in range(len(config.layers)))
        self.final_norm = _Norm(config) if config.final_norm else nn.Identity()
        if not config.tied_head:
            self.head = nn.Linear(config.n_channels, config.vocab_size, bias=False)

    @property
    def head_weight(self) -> Tensor:
        """[vocab_size, n_channels], the embedding's where the head is tied."""
        return self.embedding.weight if self.config.tied_head else self.head.weight

    def streams(self, tokens: Tensor) -> list[Tensor]:
        """The residual stream before the first and after every layer, each [..., n_channels]."""
        rotations = _Rotations(tokens.shape[-1], tokens.device)
        found = [self._embed(tokens)]
        for layer in self.layers:
            found.append(layer(found[-1], rotations))
        return found

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of every position."""
        logits = F.linear(self.final_norm(self.streams(tokens)[-1]), self.head_weight)
        return soft_cap(logits, self.config.logit_soft_cap)

    def _embed(self, tokens: Tensor) -> Tensor:
        stream = self.embedding(tokens).float() * self.config.embedding_scale
        if self.config.learned_positions:
            first = self.config.position_offset
            stream = stream + self.positions.weight[first : first + tokens.shape[-1]]
        if self.config.token_types:
            stream = stream + self.token_types.weight[0]
        return self.embedding_norm(stream) if self.config.embedding_norm else stream


class _Layer(nn.Module):
    """The sub-blocks of one layer; one that is absent is not there."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        layer = config.layers[index]
        self.parallel = layer.parallel
        if isinstance(layer.attention, AttentionConfig):
            self.attention = _Attention(config, layer.attention)
        elif layer.attention is not None:
            self.attention = _Link(config, layer.attention)
        if isinstance(layer.ffn, FfnConfig):
            self.ffn = _Ffn(config, layer.ffn)
        elif isinstance(layer.ffn, RoutedFfnConfig):
            self.ffn = _RoutedFfn(config, layer.ffn)
        elif layer.ffn is not None:
            self.ffn = _Link(config, layer.ffn)

    def forward(self, stream: Tensor, rotations: _Rotations) -> Tensor:
        entry = stream
        for sub_block in self.children():
            stream = sub_block(stream, entry if self.parallel else stream, rotations)
        return stream


class _Norm(nn.Module):
    """The model's norm; RMSNorm divides by the width that the model was trained with."""

    def __init__(
        self, config: ModelConfig, width: int | None = None, divisor: int | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.divisor = config.norm_divisor if divisor is None else divisor
        self.weight = nn.Parameter(torch.ones(config.n_channels if width is None else width))
        if config.norm == "layer":
            self.bias = nn.Parameter(torch.zeros(config.n_channels))

    def forward(self, stream: Tensor) -> Tensor:
        bias = self.bias if self.config.norm == "layer" else None
        return normalise(self.config, stream, self.weight, bias, self.divisor)


class _SubBlock(nn.Module):
    """What reads the stream and adds to it, with its norms."""

    def __init__(
        self, config: ModelConfig, shape: AttentionConfig | FfnConfig | RoutedFfnConfig
    ) -> None:
        super().__init__()
        self.place = shape.norm_place
        if self.place in ("before", "both"):
            self.norm = _Norm(config)
        if self.place != "before":
            self.post_norm = _Norm(config)

    def forward(self, stream: Tensor, read: Tensor, rotations: _Rotations) -> Tensor:
        """The stream after this, given what is read of it."""
        x = self.norm(read) if self.place in ("before", "both") else read
        output = self.compute(x, rotations)
        if self.place == "stream":
            return self.post_norm(stream + output)
        return stream + (output if self.place == "before" else self.post_norm(output))

    def compute(self, x: Tensor, rotations: _Rotations) -> Tensor:
        """The output of the projection, given what the sub-block works on."""
        raise NotImplementedError


class _Attention(_SubBlock):
    """Causal attention of any number of query heads on any KV heads."""

    def __init__(self, config: ModelConfig, attention: AttentionConfig) -> None:
        super().__init__(config, attention)
        d, bias = config.n_channels, attention.qkv_bias
        self.shape = attention
        self.causal = config.causal
        if attention.qk_norm is not None:
            self.q_norm = self._qk_norm(config, attention.n_heads, attention.q_norm_divisor)
            self.k_norm = self._qk_norm(config, attention.n_kv_heads, attention.k_norm_divisor)
        self.q = nn.Linear(d, attention.n_heads * attention.head_dim, bias=bias)
        self.k = nn.Linear(d, attention.n_kv_heads * attention.head_dim, bias=bias)
        self.v = nn.Linear(d, attention.n_kv_heads * attention.value_dim, bias=bias)
        self.o = nn.Linear(attention.n_heads * attention.value_dim, d, bias=attention.output_bias)

    def _qk_norm(self, config: ModelConfig, heads: int, divisor: int | None) -> _Norm:
        width = self.shape.head_dim if divisor is None else heads * self.shape.head_dim
        return _Norm(config, width, self.shape.head_dim if divisor is None else divisor)

    def compute(self, x: Tensor, rotations: _Rotations) -> Tensor:
        shape = self.shape
        q, k = self.q(x), self.k(x)
        if shape.qk_norm == "width":
            q, k = self.q_norm(q.float()), self.k_norm(k.float())
        q = _heads(q, shape.n_heads)  # [sequences, n_heads, tokens, head_dim]
        k = _heads(k, shape.n_kv_heads)
        v = _heads(self.v(x), shape.n_kv_heads)
        if shape.qk_norm == "head":
            q, k = self.q_norm(q.float()), self.k_norm(k.float())
        if shape.rope is not None:
            q, k = rotations.turn(shape.rope, q), rotations.turn(shape.rope, k)
        heads = attend(shape, q.to(v.dtype), k.to(v.dtype), v, causal=self.causal)
        return self.o(heads.transpose(1, 2).flatten(2))


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu": F.gelu,
    "relu": F.relu,
}


def _add_ffn_layers(module: nn.Module, config: ModelConfig, ffn: FfnConfig) -> None:
    if ffn.gated:
        module.gate = nn.Linear(config.n_channels, ffn.n_neurons, bias=ffn.bias)
    module.up = nn.Linear(config.n_channels, ffn.n_neurons, bias=ffn.bias)
    module.down = nn.Linear(ffn.n_neurons, config.n_channels, bias=ffn.bias)


def _ffn_output(module: Any, activation: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``down(activation(gate(x)) * up(x))``, or without the gate."""
    up = module.up(x)
    gated = activation(module.gate(x)) * up if hasattr(module, "gate") else None
    output: Tensor = module.down(activation(up) if gated is None else gated)
    return output


class _Ffn(_SubBlock):
    """A dense FFN."""

    def __init__(self, config: ModelConfig, ffn: FfnConfig) -> None:
        super().__init__(config, ffn)
        self.activation = _ACTIVATIONS[ffn.activation]
        _add_ffn_layers(self, config, ffn)

    def compute(self, x: Tensor, rotations: _Rotations) -> Tensor:
        return _ffn_output(self, self.activation, x)


class _RoutedFfn(_SubBlock):
    """The weighted sum of the experts that the router chooses for a token."""

    def __init__(self, config: ModelConfig, ffn: RoutedFfnConfig) -> None:
        super().__init__(config, ffn)
        self.ffn = ffn
        self.activation = _ACTIVATIONS[ffn.activation]
        self.router = nn.Linear(config.n_channels, len(ffn.experts), bias=False)
        self.experts = nn.ModuleList(nn.Module() for _ in ffn.experts)
        for index, expert in enumerate(self.experts):
            _add_ffn_layers(expert, config, ffn.expert(index))

    def compute(self, x: Tensor, rotations: _Rotations) -> Tensor:
        rows = x.flatten(0, -2)
        with torch.autocast(x.device.type, enabled=False):
            logits = self.router(rows.float())
            ranked, order = logits.sort(stable=True, descending=True)
            values, chosen = ranked[:, : self.ffn.top_k], order[:, : self.ffn.top_k]
            over_chosen = self.ffn.softmax_over == "chosen"
            total = (values if over_chosen else logits).logsumexp(-1, keepdim=True)
            weights = (values - total).exp()
        output = torch.zeros(rows.shape, dtype=torch.float32, device=rows.device)
        for index, expert in enumerate(self.experts):
            here, place = (chosen == index).nonzero(as_tuple=True)
            added = weights[here, place, None] * _ffn_output(expert, self.activation, rows[here])
            output = output.index_add(0, here, added)
        return output.view(x.shape)


class _Link(nn.Module):
    """The linear map or the constant that stands in for a sub-block."""

    def __init__(self, config: ModelConfig, link: LinkConfig) -> None:
        super().__init__()
        d, self.kind = config.n_channels, link.kind
        if link.reads:
            self.norm = _Norm(config)
        shapes: dict[str, tuple[int, ...]]
        if link.rank is not None:
            shapes = {"down": (link.rank, d), "up": (d, link.rank)}
        elif link.kind == "constant":
            shapes = {"bias": (d,)}
        else:
            shapes = {"weight": (d,) if link.kind == "diagonal" else (d, d)}
        self.link = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}
        )

    def forward(self, stream: Tensor, read: Tensor, rotations: _Rotations) -> Tensor:
        if self.kind == "constant":
            return stream + self.link["bias"]
        x = self.norm(read)
        if self.kind == "diagonal":
            return stream + x * self.link["weight"]
        if self.kind == "full":
            return stream + F.linear(x, self.link["weight"])
        return stream + F.linear(F.linear(x, self.link["down"]), self.link["up"])


class _Rotations:
    """Cosines and sines of one pass, made once for each kind of rotary embedding."""

    def __init__(self, n_tokens: int, device: Any) -> None:
        self._positions = torch.arange(n_tokens, dtype=torch.float32, device=device)
        self._tables: dict[RopeConfig, tuple[Tensor, Tensor]] = {}

    def turn(self, rope: RopeConfig, x: Tensor) -> Tensor:
        """Rotate pairs (j, j + rotary_dim / 2) of [sequences, heads, tokens, head_dim]."""
        if rope not in self._tables:
            of_length = rope.inverse_frequencies(len(self._positions))
            angles = self._positions[:, None] * torch.from_numpy(of_length).to(x.device)
            self._tables[rope] = angles.cos() * rope.amplitude, angles.sin() * rope.amplitude
        cosine, sine = self._tables[rope]
        half = rope.rotary_dim // 2
        first, second, rest = x.split((half, half, x.shape[-1] - 2 * half), dim=-1)
        turned = (first * cosine - second * sine, second * cosine + first * sine, rest.float())
        return torch.cat(turned, dim=-1).to(x.dtype)


def normalise(
    config: ModelConfig, stream: Tensor, weight: Tensor, bias: Tensor | None, divisor: int
) -> Tensor:
    """The norm of a model over [..., channels]; a bias belongs to layer norm."""
    if bias is not None:
        stream = stream - stream.mean(-1, keepdim=True)
    mean_square = stream.square().sum(-1, keepdim=True) / divisor
    normed = stream * torch.rsqrt(mean_square + config.norm_eps) * (weight + config.norm_offset)
    return normed if bias is None else normed + bias


def _heads(x: Tensor, count: int) -> Tensor:
    """[sequences, tokens, heads * width] as [sequences, heads, tokens, width]."""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)
