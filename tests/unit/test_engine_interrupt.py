"""Ctrl-C during a long call: it stops within a second, and the session is as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]

SCRIPT = """
import numpy as np
from reference.models import random_checkpoint
from slimformer.config import AttentionConfig, FfnConfig, LayerConfig, ModelConfig, RopeConfig
from slimformer.engine import Engine

attention = AttentionConfig(8, 8, 32, 32, tuple(range(8)), 0.2, RopeConfig(32))
layer = LayerConfig(attention, FfnConfig(1000))
config = ModelConfig("llama", 100, 256, 256, 1e-5, True, 1 << 20, (layer,) * 8)
engine = Engine(random_checkpoint(config, 1), weights="f32", tier="scalar", threads=1)
session = engine.session()
session.extend([1, 2, 3])
expected = session.fork().extend([5])
print("ready", flush=True)
try:
    session.extend(np.ones(1_000_000, dtype=np.int32))
except KeyboardInterrupt:
    assert session.position == 3, session.position
    assert np.array_equal(session.extend([5]), expected)
    print("stopped", flush=True)
"""


def test_a_long_call_obeys_ctrl_c() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, sys.path)])},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        output, _ = process.communicate(timeout=30)
        assert output == "stopped\n"
        assert time.monotonic() - start < 1.0
