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

WEIGHTS = ("f32", "bf16", "int8", "int4")

TOLERANCE = {"f32": 1e-5, "bf16": 1e-5, "int8": 3e-2, "int4": 3e-2}
"""Of the largest logit. The C library has its own versions of exp, sin and cos for processors with
FMA; where activations are rounded to 8 bits, their last bits can decide which way."""

SCRIPT = """
import sys
import numpy as np
from reference.models import random_checkpoint, random_config
from slimformer.engine import Engine

for seed in range(3):
    checkpoint = random_checkpoint(random_config(np.random.default_rng(seed)), seed)
    for weights in sys.argv[1:]:
        engine = Engine(checkpoint, weights=weights, threads=2)
        assert engine.tier == "scalar", engine.tier
        logits = engine.forward([engine.session()], [list(range(5, 80))], logits="last")
        np.save(sys.stdout.buffer, logits)
"""


def run(command: list[str], **environment: str) -> list[np.ndarray]:
    """Logits of every model and, in turn, weight type that the script prints."""
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    finished = subprocess.run(
        [*command, sys.executable, "-c", SCRIPT, *WEIGHTS],
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr.decode()
    stream = io.BytesIO(finished.stdout)
    return [np.load(stream) for _ in range(3 * len(WEIGHTS))]


@pytest.mark.skipif(EMULATOR is None, reason="qemu-x86_64 is not installed")
def test_scalar_tier_without_avx() -> None:
    assert EMULATOR is not None
    emulated = run([EMULATOR, "-cpu", "Nehalem"])
    native = run([], SLIMFORMER_ISA="scalar")
    for weights, there, here in zip(3 * WEIGHTS, emulated, native, strict=True):
        atol = TOLERANCE[weights] * float(np.abs(here).max())
        np.testing.assert_allclose(there, here, rtol=0, atol=atol, err_msg=weights)
