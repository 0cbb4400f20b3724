"""Attention of whole sequences with its gradient.

On a processor PyTorch's own takes three times as long as its matrix products: at 512 tokens, 9
heads on 3 KV heads of 64 and two cores 27 ms a layer there and back for 1,024 tokens of bfloat16,
and 8 more to copy each KV head for its query heads and add their gradients up again. Here the heads
of a KV head are one matrix, blocks of queries leave out the keys that come later, and the weights
are kept for the way back: 12 ms.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from slimformer.config import AttentionConfig

LONGEST = 1024
"""Tokens of a sequence up to which weights are kept: there they take 2 MB a head and sequence."""

BLOCK = 128
"""Queries at once: at 512 tokens three eighths of the products with keys are saved."""


def attend(shape: AttentionConfig, q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
    """Attention of query heads on their KV heads.

    Parameters
    ----------
    q
        [sequences, n_heads, tokens, head_dim]
    k, v
        [sequences, n_kv_heads, tokens, head_dim or value_dim]

    Returns
    -------
    [sequences, n_heads, tokens, value_dim]
    """
    n_tokens = q.shape[-2]
    short = q.device.type == "cpu" and n_tokens <= LONGEST
    if short and causal and shape.soft_cap is None:
        return _grouped(shape, q, k, v)
    k, v = _copied(shape, k), _copied(shape, v)
    if shape.window is None and shape.soft_cap is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=shape.scale)
    seen = _seen(n_tokens, shape.window, q.device) | (not causal)
    if shape.soft_cap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=shape.scale)
    scores = soft_cap((q @ k.transpose(-1, -2)).float() * shape.scale, shape.soft_cap)
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return weights.to(v.dtype) @ v


def soft_cap(x: Tensor, cap: float | None) -> Tensor:
    """``cap tanh(x / cap)``, where there is a cap."""
    return x if cap is None else cap * torch.tanh(x / cap)


def _seen(n_tokens: int, window: int | None, device: torch.device) -> Tensor:
    """Whether the query of a row sees the key of a column, [n_tokens, n_tokens]."""
    positions = torch.arange(n_tokens, device=device)
    past = positions[:, None] - positions
    return (past >= 0) & (past < (window or n_tokens))


def _copied(shape: AttentionConfig, x: Tensor) -> Tensor:
    """Keys or values of KV heads once for each query head that reads them."""
    return x[:, torch.tensor(shape.q_to_kv, device=x.device)]


def _grouped(shape: AttentionConfig, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention, the query heads of each KV head side by side."""
    groups = _equal_groups(shape.q_to_kv)
    if groups is None:
        k, v, groups = _copied(shape, k), _copied(shape, v), shape.n_heads
    n_sequences, n_heads, n_tokens, _ = q.shape
    beside = n_heads // groups
    mask = _mask(n_tokens, shape.window, q.dtype)
    outputs = []
    for start in range(0, n_tokens, BLOCK):
        end = min(start + BLOCK, n_tokens)
        queries = q[:, :, start:end].reshape(n_sequences * groups, beside * (end - start), -1)
        keys, values = (x[:, :, :end].reshape(n_sequences * groups, end, -1) for x in (k, v))
        hidden = mask[start:end, :end].repeat(beside, 1)
        output: Tensor = _Attend.apply(queries, keys, values, hidden, shape.scale)
        outputs.append(output.view(n_sequences, n_heads, end - start, -1))
    return torch.cat(outputs, dim=2)


def _equal_groups(q_to_kv: tuple[int, ...]) -> int | None:
    """The number of KV heads where each has as many query heads, in their order."""
    groups = len(set(q_to_kv))
    beside, rest = divmod(len(q_to_kv), groups)
    equal = not rest and all(kv == head // beside for head, kv in enumerate(q_to_kv))
    return groups if equal else None


@functools.lru_cache(maxsize=8)
def _mask(n_tokens: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """What is added to scores: minus infinity where a query does not see a key."""
    seen = _seen(n_tokens, window, torch.device("cpu"))
    return torch.zeros(n_tokens, n_tokens, dtype=dtype).masked_fill_(~seen, float("-inf"))


class _Attend(torch.autograd.Function):
    """``softmax(scale q k' + mask) v`` of [matrices, rows, width]; no autocast within."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
        weights = torch.add(mask, q @ k.transpose(-1, -2), alpha=scale).softmax(-1)
        ctx.save_for_backward(q, k, v, weights)
        ctx.scale = scale
        return weights @ v

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights = ctx.saved_tensors
        by_values = weights.transpose(-1, -2) @ outer
        by_weights = outer @ v.transpose(-1, -2)
        by_scores = torch._softmax_backward_data(by_weights, weights, -1, weights.dtype)
        by_scores *= ctx.scale
        return by_scores @ k, by_scores.transpose(-1, -2) @ q, by_values, None, None
