"""Peers take part in a comparison, on the packaged model's own GGUF file."""

from __future__ import annotations

from pathlib import Path

import pytest

from slimformer.evaluate.peers import PACKAGES, open_peer

pytestmark = pytest.mark.model


@pytest.mark.parametrize("peer", PACKAGES)
def test_a_peer_runs(peer: str, real_model_path: Path) -> None:
    runner = open_peer(
        peer, real_model_path, threads=2, context=64, precision="bf16", label="model"
    )
    assert runner.name == f"{peer} model"
    assert runner.max_positions == 64
    for _ in range(2):
        times = runner.run(16, 4)
        assert times.prefill > 0
        assert times.decode > 0
