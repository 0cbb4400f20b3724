"""Prune a checkpoint of Llama-2-7B's shape and see what memory and what time each layer takes.

Makes the checkpoint of random weights (13.5 GB in bfloat16 with all 32 layers), prunes it end to
end and prints a table: ``python bench/bounded_memory.py FOLDER --layers 32 --tokens 2048``.
Resident memory is what the process has written itself; pages of mapped files, which the system
takes back when it needs them, are not counted.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import sys
import threading
import time
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from slimformer.checkpoint import Checkpoint, load, save
from slimformer.checkpoint.checkpoint import DTYPES, Tensor, TokenizerAssets
from slimformer.config import AttentionConfig, FfnConfig, LayerConfig, ModelConfig, RopeConfig
from slimformer.prune import plan, prune

VOCAB, CHANNELS, NEURONS, HEADS = 32000, 4096, 11008, 32
BLOCK = (1 << 20) + 7
"""Random values that are made once; each tensor starts elsewhere in them. No multiple of a row."""


def main() -> int:
    """Make the checkpoint if it is not there, prune it and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="for the dense and the pruned model")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--keep", type=float, default=0.8)
    parser.add_argument("--criterion", default="loss")
    parser.add_argument("--tokens", type=int, default=2048, help="of calibration")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    source = options.folder / f"dense-{options.layers}"
    if not source.exists():
        save(random_model(options.layers), source)
    dense = load(source)
    text = resources.files("slimformer") / "data" / "prose.txt"
    common = {
        "calibration": [text.read_text(encoding="utf-8")],
        "tokens": options.tokens,
        "threads": options.threads,
        "state": options.folder / "unfinished",
    }
    clock = LayerClock()
    with Watch() as memory:
        # The first and the last layer too: in few layers they would be much of the model.
        recipe = plan(
            dense,
            keep=options.keep,
            criterion=options.criterion,
            protect=(),
            progress=clock,
            **common,
        )
        slim = prune(dense, recipe, progress=clock, **common)
        slim.save(options.folder / "pruned")
    shutil.rmtree(options.folder / "unfinished", ignore_errors=True)
    print(json.dumps({"layers": options.layers, "tokens": options.tokens, "dense": dense.nbytes}))
    for what, seconds in clock.per_layer().items():
        print(f"{what}: {seconds:.1f} s a layer (median)")
    print(f"largest resident memory of its own: {memory.peak / 1e9:.2f} GB")
    return 0


def random_model(layers: int) -> Checkpoint:
    """A model whose tensors are made when they are read."""
    attention = AttentionConfig(
        n_heads=HEADS,
        n_kv_heads=HEADS,
        head_dim=CHANNELS // HEADS,
        value_dim=CHANNELS // HEADS,
        q_to_kv=tuple(range(HEADS)),
        scale=(CHANNELS // HEADS) ** -0.5,
        rope=RopeConfig(CHANNELS // HEADS),
    )
    layer = LayerConfig(attention, FfnConfig(NEURONS))
    config = ModelConfig("llama", VOCAB, CHANNELS, CHANNELS, 1e-5, False, 4096, (layer,) * layers)
    block = np.random.default_rng(0).standard_normal(BLOCK, np.float32)
    tensors = {
        name: _random(block, number, name, shape)
        for number, (name, shape) in enumerate(config.tensor_shapes().items())
    }
    return Checkpoint("random-7b", config, tensors, _byte_tokenizer())


def _random(
    block: npt.NDArray[np.float32], number: int, name: str, shape: tuple[int, ...]
) -> Tensor:
    def read() -> npt.NDArray[np.generic]:
        if name.endswith("norm.weight"):
            return np.ones(shape, DTYPES["bf16"])
        scale = np.float32(1 / math.sqrt(shape[-1]))
        values = np.roll(block, 7919 * number) * scale
        return np.resize(values.astype(DTYPES["bf16"]), shape)

    return Tensor(shape, "bf16", read)


def _byte_tokenizer() -> TokenizerAssets:
    """One token a byte."""
    vocab = {
        character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))
    }
    vocab |= {f"<|reserved_{i}|>": i for i in range(len(vocab), VOCAB)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return TokenizerAssets(tokenizer.to_str())


class LayerClock:
    """Takes the time from one layer's announcement to the next."""

    def __init__(self) -> None:
        self._seen: dict[str, list[float]] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        """See ``slimformer.progress.Progress``."""
        self._seen.setdefault(what, []).append(time.perf_counter())
        print(f"{what} {done}/{total}", file=sys.stderr, flush=True)

    def per_layer(self) -> dict[str, float]:
        """Median seconds a step of each kind of work."""
        return {
            what: statistics.median(np.diff(times))
            for what, times in self._seen.items()
            if len(times) > 1
        }


class Watch:
    """Looks ten times a second at how much memory the process has of its own."""

    def __enter__(self) -> Watch:
        """Begin."""
        self.peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        """End."""
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(0.1):
            for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
                if line.startswith("RssAnon:"):
                    self.peak = max(self.peak, 1024 * int(line.split()[1]))


if __name__ == "__main__":
    sys.exit(main())
