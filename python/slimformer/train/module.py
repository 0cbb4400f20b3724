"""A ragged model as an ``nn.Module``: the forward pass of ``config.py``'s shapes, to be trained.

Parameters carry the names of the checkpoint's tensors. Sequences of one length are computed side
by side, from position 0; there is no cache. Under ``torch.autocast`` matrix products run in the
lower precision, the residual stream and the norms in float32.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from slimformer.config import AttentionConfig, FfnConfig, LinkConfig, ModelConfig, RopeConfig


class TorchModel(nn.Module):
    """Any model that a ``ModelConfig`` describes.

    Called with token ids [sequences, tokens] it gives logits [sequences, tokens, vocab_size].
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.n_channels)
        self.layers = nn.ModuleList(_Layer(config, index) for index in range(len(config.layers)))
        self.final_norm = _Norm(config)
        if not config.tied_head:
            self.head = nn.Linear(config.n_channels, config.vocab_size, bias=False)

    @property
    def head_weight(self) -> Tensor:
        """[vocab_size, n_channels], the embedding's where the head is tied."""
        return self.embedding.weight if self.config.tied_head else self.head.weight

    def streams(self, tokens: Tensor) -> list[Tensor]:
        """The residual stream before the first and after every layer, each [..., n_channels]."""
        rotations = _Rotations(tokens.shape[-1], tokens.device)
        found = [self.embedding(tokens).float()]
        for layer in self.layers:
            found.append(layer(found[-1], rotations))
        return found

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of every position."""
        return F.linear(self.final_norm(self.streams(tokens)[-1]), self.head_weight)


class _Layer(nn.Module):
    """The sub-blocks of one layer; one that is absent is not there."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        layer = config.layers[index]
        if isinstance(layer.attention, AttentionConfig):
            self.attention = _Attention(config, layer.attention)
        elif layer.attention is not None:
            self.attention = _Link(config, layer.attention)
        if isinstance(layer.ffn, FfnConfig):
            self.ffn = _Ffn(config, layer.ffn)
        elif layer.ffn is not None:
            self.ffn = _Link(config, layer.ffn)

    def forward(self, stream: Tensor, rotations: _Rotations) -> Tensor:
        for sub_block in self.children():
            stream = stream + sub_block(stream, rotations)
        return stream


class _Norm(nn.Module):
    """RMSNorm that divides by the width that the model was trained with."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.n_channels))
        self.divisor = config.norm_divisor
        self.eps = config.norm_eps

    def forward(self, stream: Tensor) -> Tensor:
        return rms_norm(stream, self.weight, self.divisor, self.eps)


class _Attention(nn.Module):
    """Causal attention of any number of query heads on any KV heads."""

    def __init__(self, config: ModelConfig, attention: AttentionConfig) -> None:
        super().__init__()
        d, bias = config.n_channels, attention.qkv_bias
        self.shape = attention
        self.norm = _Norm(config)
        self.q = nn.Linear(d, attention.n_heads * attention.head_dim, bias=bias)
        self.k = nn.Linear(d, attention.n_kv_heads * attention.head_dim, bias=bias)
        self.v = nn.Linear(d, attention.n_kv_heads * attention.value_dim, bias=bias)
        self.o = nn.Linear(attention.n_heads * attention.value_dim, d, bias=attention.output_bias)

    def forward(self, stream: Tensor, rotations: _Rotations) -> Tensor:
        x, shape = self.norm(stream), self.shape
        q = _heads(self.q(x), shape.n_heads)  # [sequences, n_heads, tokens, head_dim]
        k = _heads(self.k(x), shape.n_kv_heads)
        v = _heads(self.v(x), shape.n_kv_heads)
        if shape.rope is not None:
            q, k = rotations.turn(shape.rope, q), rotations.turn(shape.rope, k)
        reads = torch.tensor(shape.q_to_kv, device=x.device)
        heads = F.scaled_dot_product_attention(
            q, k[:, reads], v[:, reads], is_causal=True, scale=shape.scale
        )
        return self.o(heads.transpose(1, 2).flatten(2))


class _Ffn(nn.Module):
    """``down(silu(gate(x)) * up(x))``."""

    def __init__(self, config: ModelConfig, ffn: FfnConfig) -> None:
        super().__init__()
        self.norm = _Norm(config)
        self.gate = nn.Linear(config.n_channels, ffn.n_neurons, bias=ffn.bias)
        self.up = nn.Linear(config.n_channels, ffn.n_neurons, bias=ffn.bias)
        self.down = nn.Linear(ffn.n_neurons, config.n_channels, bias=ffn.bias)

    def forward(self, stream: Tensor, rotations: _Rotations) -> Tensor:
        x = self.norm(stream)
        return self.down(F.silu(self.gate(x)) * self.up(x))


class _Link(nn.Module):
    """The linear map that stands in for a sub-block."""

    def __init__(self, config: ModelConfig, link: LinkConfig) -> None:
        super().__init__()
        d, self.kind = config.n_channels, link.kind
        self.norm = _Norm(config)
        if link.rank is not None:
            shapes: dict[str, tuple[int, ...]] = {"down": (link.rank, d), "up": (d, link.rank)}
        else:
            shapes = {"weight": (d,) if link.kind == "diagonal" else (d, d)}
        self.link = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}
        )

    def forward(self, stream: Tensor, rotations: _Rotations) -> Tensor:
        x = self.norm(stream)
        if self.kind == "diagonal":
            return x * self.link["weight"]
        if self.kind == "full":
            return F.linear(x, self.link["weight"])
        return F.linear(F.linear(x, self.link["down"]), self.link["up"])


class _Rotations:
    """Cosines and sines of one pass, made once for each kind of rotary embedding."""

    def __init__(self, n_tokens: int, device: Any) -> None:
        self._positions = torch.arange(n_tokens, dtype=torch.float32, device=device)
        self._tables: dict[RopeConfig, tuple[Tensor, Tensor]] = {}

    def turn(self, rope: RopeConfig, x: Tensor) -> Tensor:
        """Rotate pairs (j, j + rotary_dim / 2) of [sequences, heads, tokens, head_dim]."""
        if rope not in self._tables:
            frequencies = torch.from_numpy(rope.inverse_frequencies()).to(x.device)
            angles = self._positions[:, None] * frequencies
            self._tables[rope] = angles.cos(), angles.sin()
        cosine, sine = self._tables[rope]
        half = rope.rotary_dim // 2
        first, second, rest = x.split((half, half, x.shape[-1] - 2 * half), dim=-1)
        turned = (first * cosine - second * sine, second * cosine + first * sine, rest.float())
        return torch.cat(turned, dim=-1).to(x.dtype)


def rms_norm(stream: Tensor, weight: Tensor, divisor: int, eps: float) -> Tensor:
    """[..., channels] over the root of its sum of squares by ``divisor``, times the weight."""
    mean_square = stream.square().sum(-1, keepdim=True) / divisor
    return stream * torch.rsqrt(mean_square + eps) * weight


def _heads(x: Tensor, count: int) -> Tensor:
    """[sequences, tokens, heads * width] as [sequences, heads, tokens, width]."""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)
