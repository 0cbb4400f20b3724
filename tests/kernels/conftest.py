"""Every test runs on every tier that this machine has, against float64."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.memory import PLACEMENTS
from slimformer import _kernels


@pytest.fixture(params=_kernels.tiers())
def tier(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["f32", "bf16", "int8", "int4"])
def weights(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=PLACEMENTS)
def placement(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)
