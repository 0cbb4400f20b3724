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


def divergence(student: Tensor, head: Tensor, wanted: Tensor, wanted_head: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the student's predictions from the teacher's, in nats.

    Parameters
    ----------
    student, wanted
        Normalised last hidden states of the student and of the teacher, [tokens, channels].
    head, wanted_head
        Their heads, [vocab_size, channels]; logits are computed in the heads' types. Only
        ``student`` gets a gradient.

    Returns
    -------
    The mean over the tokens, a scalar.
    """
    result: Tensor = _Divergence.apply(student, head, wanted, wanted_head)
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
        ctx: Any, student: Tensor, head: Tensor, wanted: Tensor, wanted_head: Tensor
    ) -> Tensor:
        gradient = torch.empty_like(student) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), device=student.device)
        for start in range(0, len(student), BLOCK):
            rows = slice(start, start + BLOCK)
            logs = _log_probabilities(student[rows], head)
            wanted_logs = _log_probabilities(wanted[rows], wanted_head)
            probabilities = wanted_logs.exp()
            total += torch.dot(probabilities.view(-1), wanted_logs.sub_(logs).view(-1))
            if gradient is not None:
                difference = logs.exp_().sub_(probabilities).div_(len(student))
                gradient[rows] = difference.to(head.dtype) @ head
        ctx.save_for_backward(gradient)
        return total / len(student)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer, None, None, None


def _log_probabilities(hidden: Tensor, head: Tensor) -> Tensor:
    """Float32 [tokens, vocab_size]."""
    return torch.log_softmax(hidden.to(head.dtype) @ head.T, -1, dtype=torch.float32)
