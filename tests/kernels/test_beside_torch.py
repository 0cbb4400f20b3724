"""Products here and in another library that uses tile registers (AMX), by turns on one thread."""

from __future__ import annotations

import numpy as np
import pytest

from slimformer import _kernels as kernels

pytestmark = pytest.mark.parity


def test_taking_turns_with_torch(tier: str, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    x = rng.standard_normal((64, 256), dtype=np.float32)
    w = rng.standard_normal((96, 256), dtype=np.float32)
    packed = kernels.Matrix(tier, "bf16", w)
    theirs = torch.nn.Linear(256, 96, bias=False, dtype=torch.bfloat16)
    with torch.no_grad():
        theirs.weight.copy_(torch.from_numpy(w))
        rows = torch.from_numpy(x).to(torch.bfloat16)
        first = theirs(rows)
        ours = np.empty((64, 96), np.float32)
        packed.multiply(x, ours)
        for _ in range(5):
            again = np.empty_like(ours)
            packed.multiply(x, again)
            np.testing.assert_array_equal(again, ours)
            assert torch.equal(theirs(rows), first)
    np.testing.assert_allclose(ours, first.float().numpy(), atol=0.5, rtol=0.02)
