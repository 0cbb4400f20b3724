"""How far a student's predictions are from the teacher's and from the text, without their logits.

The divergence of two distributions over a vocabulary of 49 thousand takes more memory than all
else in a step. Here logits are made a block of tokens at a time, and the gradient with them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from slimformer.train.attention import soft_cap as capped

BLOCK = 256
"""Tokens whose logits exist at once: enough rows for a matrix product at full speed, few enough
that their logits (50 MB in float32 for 49 thousand words) stay near the caches."""


def divergence(
    student: Tensor,
    head: Tensor,
    wanted: Tensor,
    wanted_head: Tensor,
    soft_cap: float | None = None,
    *,
    labels: Tensor | None = None,
    share: float = 0.0,
) -> Tensor:
    """Divergence of the student's predictions from the teacher's and from the text, in nats.

    ``(1 - share)`` of the Kullback-Leibler divergence from what the teacher predicts and ``share``
    of the cross entropy with the token that follows (Hinton et al. 2015, arXiv 1503.02531); the
    divergence alone where that token is not known.

    Parameters
    ----------
    student, wanted
        Normalised last hidden states of the student and of the teacher, [tokens, channels].
    head, wanted_head
        Their heads, [vocab_size, channels]; logits are computed in the heads' types. Only
        ``student`` gets a gradient.
    soft_cap
        The models' soft cap of logits.
    labels
        The tokens that follow, [tokens]; below 0 where they are not known. Without any, none is.
    share
        0 to 1.

    Returns
    -------
    The mean over the tokens, a scalar.
    """
    if labels is None:
        labels = torch.full(student.shape[:1], -1, device=student.device)
    result: Tensor = _Divergence.apply(student, head, wanted, wanted_head, soft_cap, labels, share)
    return result


def residual_error(streams: list[Tensor], wanted: list[Tensor]) -> Tensor:
    """Mean over tokens and streams of ``|stream - wanted|^2 / |wanted|^2``, a scalar."""
    errors = [
        (F.mse_loss(stream, target, reduction="none").sum(-1) / target.square().sum(-1)).mean()
        for stream, target in zip(streams, wanted, strict=True)
    ]
    return torch.stack(errors).mean()


class _Divergence(torch.autograd.Function):
    """Its gradient by the logits is the difference of probabilities, found and wanted."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        head: Tensor,
        wanted: Tensor,
        wanted_head: Tensor,
        soft_cap: float | None,
        labels: Tensor,
        share: float,
    ) -> Tensor:
        of_text = share * (labels >= 0)
        gradient = torch.empty_like(student) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), device=student.device)
        for start in range(0, len(student), BLOCK):
            rows = slice(start, start + BLOCK)
            logits = _logits(student[rows], head, soft_cap)
            wanted_logits = _logits(wanted[rows], wanted_head, soft_cap)
            slope = None if soft_cap is None else 1 - (logits / soft_cap).square()
            found, probabilities = logits.softmax(-1), wanted_logits.softmax(-1)
            normaliser = _normaliser(logits, found)
            apart = normaliser - _normaliser(wanted_logits, probabilities)
            label = labels[rows, None].clamp(min=0)
            surprise = normaliser - logits.gather(1, label).squeeze(1)
            total += torch.lerp(apart, surprise, of_text[rows]).sum()
            probabilities.mul_(1 - of_text[rows, None])
            total += torch.dot(probabilities.view(-1), wanted_logits.sub_(logits).view(-1))
            if gradient is not None:
                probabilities.scatter_add_(1, label, of_text[rows, None])
                difference = found.sub_(probabilities).div_(len(student))
                if slope is not None:
                    difference.mul_(slope)
                gradient[rows] = difference.to(head.dtype) @ head
        ctx.save_for_backward(gradient)
        return total / len(student)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer, *[None] * 6


def _normaliser(logits: Tensor, probabilities: Tensor) -> Tensor:
    """log(sum(exp(logits))) of each row, of which the probabilities are known already."""
    return logits.amax(-1) - probabilities.amax(-1).log()


def _logits(hidden: Tensor, head: Tensor, soft_cap: float | None) -> Tensor:
    """[tokens, vocab_size] in float32, computed in the head's type."""
    return capped((hidden.to(head.dtype) @ head.T).float(), soft_cap)
