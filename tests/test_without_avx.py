"""The scalar tier on an emulated processor that has no AVX: nothing compiled for more leaks in."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EMULATOR = shutil.which("qemu-x86_64")

SCRIPT = """
import sys
import numpy as np
from reference.models import random_checkpoint, random_config
from slimformer.engine import Engine

for seed in range(3):
    checkpoint = random_checkpoint(random_config(np.random.default_rng(seed)), seed)
    for weights in ("f32", "bf16", "int8", "int4"):
        engine = Engine(checkpoint, weights=weights, threads=2)
        assert engine.tier == "scalar", engine.tier
        logits = engine.forward([engine.session()], [list(range(5, 80))], logits="last")
        np.save(sys.stdout.buffer, logits)
"""


def run(command: list[str], **environment: str) -> list[np.ndarray]:
    """Logits of every model and weight type that the script prints."""
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    finished = subprocess.run(
        [*command, sys.executable, "-c", SCRIPT],
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr.decode()
    stream = io.BytesIO(finished.stdout)
    return [np.load(stream) for _ in range(12)]


@pytest.mark.skipif(EMULATOR is None, reason="qemu-x86_64 is not installed")
def test_scalar_tier_without_avx() -> None:
    assert EMULATOR is not None
    emulated = run([EMULATOR, "-cpu", "Nehalem"])
    native = run([], SLIMFORMER_ISA="scalar")
    for there, here in zip(emulated, native, strict=True):
        # The C library has its own versions of exp, sin and cos for processors with FMA.
        np.testing.assert_allclose(there, here, rtol=0, atol=1e-5 * float(np.abs(here).max()))
