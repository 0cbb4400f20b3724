"""Choosing a tier."""

from __future__ import annotations

import numpy as np
import pytest

from slimformer import _kernels as kernels


def test_the_highest_tier_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLIMFORMER_ISA", raising=False)
    assert kernels.tiers()[0] == "scalar"
    assert kernels.selected_tier() == kernels.tiers()[-1]
    monkeypatch.setenv("SLIMFORMER_ISA", "")
    assert kernels.selected_tier() == kernels.tiers()[-1]


def test_the_environment_narrows_the_choice(tier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIMFORMER_ISA", tier)
    assert kernels.selected_tier() == tier


@pytest.mark.parametrize("name", ["avx3", "AVX2", "scalar ", "avx512-vnni"])
def test_an_unknown_tier_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIMFORMER_ISA", name)
    with pytest.raises(kernels.KernelError, match=rf"SLIMFORMER_ISA is '{name}'.*scalar"):
        kernels.selected_tier()


def test_tiers_come_with_their_features() -> None:
    if "avx2" in kernels.tiers():
        assert {"avx", "avx2", "fma"} <= set(kernels.cpu_features())


def test_roofline_is_plausible(tier: str) -> None:
    gflops, gbytes_per_s = kernels.measure_roofline(tier, threads=1, seconds=0.01)
    assert 0.1 < gflops < 10_000
    assert 0.1 < gbytes_per_s < 10_000


@pytest.mark.parametrize("threads", [-1, 1025])
def test_impossible_thread_counts_are_refused(threads: int) -> None:
    with pytest.raises(kernels.KernelError, match="threads must be between 0"):
        kernels.Matrix("scalar", "f32", np.ones((1, 1), np.float32), threads=threads)
