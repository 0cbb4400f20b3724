from __future__ import annotations

from typing import Any

import pytest


@pytest.mark.parametrize("soft_cap", [None, 2.0])
@pytest.mark.parametrize("share", [None, 0.0, 0.3, 1.0])
def test_divergence_and_gradient_are_those_of_the_definition(
    soft_cap: float | None, share: float | None
) -> None:
    import torch
    import torch.nn.functional as F  # noqa: N812

    from slimformer.train.attention import soft_cap as capped
    from slimformer.train.divergence import BLOCK, divergence

    torch.manual_seed(1)
    student, wanted = torch.randn(2, BLOCK + 7, 12).unbind()
    student.requires_grad_()
    head, wanted_head = torch.randn(2, 33, 12).unbind()
    logs, wanted_logs = (
        F.log_softmax(capped(x @ h.T, soft_cap), -1)
        for x, h in ((student, head), (wanted, wanted_head))
    )
    expected = F.kl_div(logs, wanted_logs, log_target=True, reduction="none").sum(-1)
    given: dict[str, Any] = {}
    if share is not None:
        labels = torch.randint(0, 33, (len(student),))
        labels[::5] = -1
        known = labels >= 0
        words = F.nll_loss(logs[known], labels[known], reduction="none")
        expected = expected.masked_scatter(known, torch.lerp(expected[known], words, share))
        given = {"labels": labels, "share": share}
    expected = expected.mean()
    (gradient,) = torch.autograd.grad(expected, student)
    found = divergence(student, head, wanted, wanted_head, soft_cap, **given)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, student)[0], gradient)
