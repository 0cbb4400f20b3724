"""Packing takes the packed model and one tensor; sequences take memory that others have left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

STATUS = Path("/proc/self/status")
TESTS = Path(__file__).resolve().parents[1]

SCRIPT = """
import sys, threading
from pathlib import Path
import numpy as np
from slimformer.checkpoint.checkpoint import Checkpoint, Tensor
from slimformer.config import AttentionConfig, FfnConfig, LayerConfig, ModelConfig, RopeConfig
from slimformer.engine import Engine

def anonymous_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024

attention = AttentionConfig(8, 8, 64, 64, tuple(range(8)), 0.125, RopeConfig(64))
layer = LayerConfig(attention, FfnConfig(2048))
config = ModelConfig("llama", 10_000, 512, 512, 1e-5, True, 100, (layer,) * 8)
tensors = {
    name: Tensor(shape, "f32", lambda shape=shape: np.full(shape, 0.01, dtype=np.float32))
    for name, shape in config.tensor_shapes().items()
}
checkpoint = Checkpoint("lazy", config, tensors)
before = peak = anonymous_bytes()
done = threading.Event()

def watch():
    global peak
    while not done.wait(0.001):
        peak = max(peak, anonymous_bytes())

watcher = threading.Thread(target=watch)
watcher.start()
engine = Engine(checkpoint, weights=sys.argv[1], threads=2)
done.set()
watcher.join()
largest = max(tensor.nbytes for tensor in tensors.values())
print(peak - before, engine.weight_bytes, largest)
"""


def run(script: str, *arguments: str) -> str:
    """What a script prints in a process of its own."""
    path = os.pathsep.join([str(TESTS), *filter(None, sys.path)])
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.mark.skipif(not STATUS.exists(), reason="needs /proc")
@pytest.mark.parametrize("weights", ["f32", "bf16", "int8", "int4"])
def test_peak_memory_while_packing(weights: str) -> None:
    output = run(SCRIPT, weights)
    peak, packed, largest = map(int, output.split())
    assert packed > 20e6
    assert peak < 1.15 * packed + largest


SEQUENCES = """
import resource
import numpy as np
from reference.models import random_checkpoint
from slimformer.config import AttentionConfig, LayerConfig, ModelConfig, RopeConfig
from slimformer.engine import Engine

attention = AttentionConfig(8, 8, 128, 128, tuple(range(8)), 0.1, RopeConfig(128))
config = ModelConfig("llama", 50, 16, 16, 1e-5, True, 1024, (LayerConfig(attention, None),) * 12)
engine = Engine(random_checkpoint(config, 1), weights="f32", threads=1)
tokens = np.arange(1000, dtype=np.int32) % 50
found = []
for _ in range(4):
    session = engine.session()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    found.append(session.extend(tokens))
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    print(faults, session.kv_bytes)
    del session
assert all((one == found[0]).all() for one in found)
"""


def test_a_sequence_takes_the_memory_that_another_has_left() -> None:
    output = run(SEQUENCES)
    lines = [tuple(map(int, line.split())) for line in output.splitlines()]
    faults, kv_bytes = zip(*lines, strict=True)
    assert min(kv_bytes) > 96e6  # 48 huge pages, or thousands of small ones
    assert min(faults[1:]) < 24
