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
        Their heads, [vocab_size, channels]. ``wanted`` and ``wanted_head`` get no gradient.

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
        low = (
            torch.get_autocast_dtype(student.device.type)
            if torch.is_autocast_enabled(student.device.type)
            else torch.float32
        )
        head_low, wanted_head_low = head.to(low), wanted_head.to(low)
        by_student = torch.zeros_like(student) if ctx.needs_input_grad[0] else None
        by_head = torch.zeros_like(head) if ctx.needs_input_grad[1] else None
        total = torch.zeros((), device=student.device)
        with torch.autocast(student.device.type, enabled=False):
            for start in range(0, len(student), BLOCK):
                rows = slice(start, start + BLOCK)
                x = student[rows].to(low)
                logs = torch.log_softmax((x @ head_low.T).float(), -1)
                wanted_logs = torch.log_softmax(
                    (wanted[rows].to(low) @ wanted_head_low.T).float(), -1
                )
                probabilities = wanted_logs.exp()
                total += (probabilities * (wanted_logs - logs)).sum()
                if by_student is None and by_head is None:
                    continue
                difference = ((logs.exp() - probabilities) / len(student)).to(low)
                if by_student is not None:
                    by_student[rows] = difference @ head_low
                if by_head is not None:
                    by_head += difference.T @ x
        ctx.save_for_backward(by_student, by_head)
        return total / len(student)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return (
            *(None if by is None else by * gradient for by in ctx.saved_tensors),
            None,
            None,
        )
