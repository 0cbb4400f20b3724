"""How far a student's predictions are from the teacher's, without their logits in memory.

The divergence of two distributions over a vocabulary of 49 thousand takes more memory than all
else in a step. Here logits are made a block of tokens at a time, and the gradient with them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

BLOCK = 256
"""Tokens whose logits exist at once: enough rows for a matrix product at full speed, few enough
that their logits (50 MB in float32 for 49 thousand words) stay near the caches."""


def divergence(
    student: Tensor,
    head: Tensor,
    wanted: Tensor,
    wanted_head: Tensor,
    soft_cap: float | None = None,
) -> Tensor:
    """Kullback-Leibler divergence of the student's predictions from the teacher's, in nats.

    Parameters
    ----------
    student, wanted
        Normalised last hidden states of the student and of the teacher, [tokens, channels].
    head, wanted_head
        Their heads, [vocab_size, channels]; logits are computed in the heads' types. Only
        ``student`` gets a gradient.
    soft_cap
        The models' soft cap of logits.

    Returns
    -------
    The mean over the tokens, a scalar.
    """
    result: Tensor = _Divergence.apply(student, head, wanted, wanted_head, soft_cap)
    return result


def residual_error(streams: list[Tensor], wanted: list[Tensor]) -> Tensor:
    """Mean over tokens and streams of ``|stream - wanted|^2 / |wanted|^2``, a scalar."""
    errors = [
        (F.mse_loss(stream, target, reduction="none").sum(-1) / target.square().sum(-1)).mean()
        for stream, target in zip(streams, wanted, strict=True)
    ]
    return torch.stack(errors).mean()


class _Divergence(torch.autograd.Function):
    """KL(teacher || student). Its gradient by the logits is the difference of probabilities."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        head: Tensor,
        wanted: Tensor,
        wanted_head: Tensor,
        soft_cap: float | None,
    ) -> Tensor:
        gradient = torch.empty_like(student) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), device=student.device)
        for start in range(0, len(student), BLOCK):
            rows = slice(start, start + BLOCK)
            logits = _logits(student[rows], head, soft_cap)
            wanted_logits = _logits(wanted[rows], wanted_head, soft_cap)
            slope = None if soft_cap is None else 1 - (logits / soft_cap).square()
            found, probabilities = logits.softmax(-1), wanted_logits.softmax(-1)
            total += (_normaliser(logits, found) - _normaliser(wanted_logits, probabilities)).sum()
            total += torch.dot(probabilities.view(-1), wanted_logits.sub_(logits).view(-1))
            if gradient is not None:
                difference = found.sub_(probabilities).div_(len(student))
                if slope is not None:
                    difference.mul_(slope)
                gradient[rows] = difference.to(head.dtype) @ head
        ctx.save_for_backward(gradient)
        return total / len(student)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer, None, None, None, None


def _normaliser(logits: Tensor, probabilities: Tensor) -> Tensor:
    """log(sum(exp(logits))) of each row, of which the probabilities are known already."""
    return logits.amax(-1) - probabilities.amax(-1).log()


def _logits(hidden: Tensor, head: Tensor, soft_cap: float | None) -> Tensor:
    """[tokens, vocab_size] in float32, computed in the head's type."""
    logits = (hidden.to(head.dtype) @ head.T).float()
    return logits if soft_cap is None else soft_cap * torch.tanh(logits / soft_cap)
