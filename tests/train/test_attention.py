from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from slimformer.config import AttentionConfig

if TYPE_CHECKING:
    from torch import Tensor

MAPS = {
    "alike": (0, 0, 0, 1, 1, 1),
    "each its own": (0, 1, 2),
    "ragged": (0, 1, 1, 1, 2),
    "out of order": (1, 0, 1, 0),
}


def shape(reads: tuple[int, ...], window: int | None) -> AttentionConfig:
    whole = AttentionConfig(
        n_heads=len(reads),
        n_kv_heads=max(reads) + 1,
        head_dim=8,
        value_dim=4,
        q_to_kv=reads,
        scale=0.4,
        rope=None,
    )
    return dataclasses.replace(whole, window=window)


def inputs(shape: AttentionConfig, n_tokens: int) -> list[Tensor]:
    import torch

    made = torch.Generator().manual_seed(n_tokens)
    sizes = (
        (shape.n_heads, shape.head_dim),
        (shape.n_kv_heads, shape.head_dim),
        (shape.n_kv_heads, shape.value_dim),
    )
    return [
        torch.randn(2, heads, n_tokens, width, generator=made, dtype=torch.float64).requires_grad_()
        for heads, width in sizes
    ]


def plainly(shape: AttentionConfig, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One head after the other, one query after the other."""
    import torch

    n_tokens = q.shape[2]
    outputs = []
    for head, kv in enumerate(shape.q_to_kv):
        rows = []
        for place in range(n_tokens):
            first = 0 if shape.window is None else max(0, place + 1 - shape.window)
            keys, values = (x[:, kv, first : place + 1] for x in (k, v))
            weights = (shape.scale * (keys @ q[:, head, place, :, None])).softmax(1)
            rows.append((weights * values).sum(1))
        outputs.append(torch.stack(rows, 1))
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("reads", MAPS.values(), ids=MAPS.keys())
def test_outputs_and_gradients_are_those_of_plain_attention(
    reads: tuple[int, ...], window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from slimformer.train import attention

    monkeypatch.setattr(attention, "BLOCK", 4)
    attended = shape(reads, window)
    given = inputs(attended, n_tokens=11)
    found = attention.attend(attended, *given, causal=True)
    expected = plainly(attended, *given)
    torch.testing.assert_close(found, expected)
    outer = torch.randn(expected.shape, dtype=torch.float64)
    for one, other in zip(
        torch.autograd.grad(found, given, outer),
        torch.autograd.grad(expected, given, outer),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_long_sequences_keep_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from slimformer.train import attention

    attended = shape(MAPS["ragged"], window=None)
    given = inputs(attended, n_tokens=11)
    short = attention.attend(attended, *given, causal=True)
    monkeypatch.setattr(attention, "LONGEST", 10)
    monkeypatch.delattr(attention, "_Attend")
    torch.testing.assert_close(short, attention.attend(attended, *given, causal=True))
