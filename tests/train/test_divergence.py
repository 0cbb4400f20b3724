from __future__ import annotations

import pytest


@pytest.mark.parametrize("soft_cap", [None, 2.0])
def test_divergence_and_gradient_are_those_of_the_definition(soft_cap: float | None) -> None:
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
    expected = F.kl_div(logs, wanted_logs, log_target=True, reduction="batchmean")
    (gradient,) = torch.autograd.grad(expected, student)
    found = divergence(student, head, wanted, wanted_head, soft_cap)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, student)[0], gradient)
