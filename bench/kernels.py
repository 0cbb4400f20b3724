"""Matrix products over the shapes in shapes/*.txt, as shares of what the machine can do at most.

A shape is timed in turn over copies of its weights that together exceed the caches, as a model's
layers follow each other; the best of many rounds is reported. One row of x is decoding
(GB/s of weights read), many are prefill (GFLOP/s).

With ``--zeros`` that share of the weights is zero, and their sparse form is timed against the dense
one in turn: the median of the ratios of each round, and the ratio of the bytes.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from slimformer import _kernels as kernels

Weights = Literal["f32", "bf16", "int8", "int4"]

SPARSE: tuple[Literal["bf16", "int8"], ...] = ("bf16", "int8")
"""Those that have a sparse form."""

SHAPES = Path(__file__).with_name("shapes")

STREAM_BYTES = 96 << 20
"""Weights that one round of decoding reads: three times a large L3 cache."""


def shapes(path: Path) -> list[tuple[int, int, str]]:
    """Inputs, outputs and name of every line."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    fields = [line.split(maxsplit=2) for line in lines if line]
    return [(int(inputs), int(outputs), name) for inputs, outputs, name in fields]


def seconds(
    tier: str, weights: Weights, rows: int, inputs: int, outputs: int, *, threads: int, rounds: int
) -> tuple[float, int]:
    """Best seconds of one product, and the bytes of its packed weights."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((outputs, inputs), dtype=np.float32)
    x = rng.standard_normal((rows, inputs), dtype=np.float32)
    y = whole_lines(rows, outputs)
    first = kernels.Matrix(tier, weights, w, threads=threads)
    copies = max(1, STREAM_BYTES // first.bytes) if rows < 16 else 1
    matrices = [first]
    matrices += [kernels.Matrix(tier, weights, w, threads=threads) for _ in range(copies - 1)]
    return kernels.time_linear(matrices, x, y, rounds) / copies, first.bytes


def whole_lines(rows: int, outputs: int) -> npt.NDArray[np.float32]:
    """Memory that begins with a cache line, as the engine's own does."""
    values = np.empty(rows * outputs + 16, np.float32)
    first = -values.ctypes.data % 64 // values.itemsize
    return values[first : first + rows * outputs].reshape(rows, outputs)


def sparse_ratios(
    tier: str,
    weights: Weights,
    share: float,
    rows: int,
    inputs: int,
    outputs: int,
    *,
    threads: int,
    rounds: int,
) -> tuple[float, float]:
    """How many times as fast the sparse form is as the dense one, and the ratio of their bytes."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((outputs, inputs), dtype=np.float32)
    w[rng.random(w.shape) < share] = 0
    x = rng.standard_normal((rows, inputs), dtype=np.float32)
    y = whole_lines(rows, outputs)
    forms: list[list[kernels.Matrix]] = []
    form: Literal["dense", "sparse"]
    for form in ("dense", "sparse"):
        first = kernels.Matrix(tier, weights, w, form=form, threads=threads)
        copies = max(1, STREAM_BYTES // first.bytes)
        forms.append([first])
        forms[-1] += [
            kernels.Matrix(tier, weights, w, form=form, threads=threads) for _ in range(copies - 1)
        ]
    dense, sparse = forms
    ratios = []
    for _ in range(rounds):
        before, after = (
            kernels.time_linear(matrices, x, y, 1) / len(matrices) for matrices in forms
        )
        ratios.append(before / after)
    return statistics.median(ratios), sparse[0].bytes / dense[0].bytes


def sparse_lines(options: argparse.Namespace) -> Iterator[str]:
    """The sparse form of every shape against the dense one."""
    yield f"{options.tier}, {options.threads} threads, sparse against dense"
    yield f"{'weights':8}{'zeros':>6}{'rows':>5}{'inputs':>8}{'outputs':>9}{'speed':>7}{'bytes':>7}"
    for path in sorted(SHAPES.glob(f"{options.shapes}.txt")):
        for weights in SPARSE:
            for share in options.zeros:
                for rows in options.rows:
                    for inputs, outputs, name in shapes(path):
                        speed, size = sparse_ratios(
                            options.tier,
                            weights,
                            share,
                            rows,
                            inputs,
                            outputs,
                            threads=options.threads,
                            rounds=options.rounds,
                        )
                        yield (
                            f"{weights:8}{share:6.0%}{rows:5}{inputs:8}{outputs:9}"
                            f"{speed:7.2f}{size:7.3f}  {name}"
                        )


def main() -> int:
    """Print one line a shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tier", default=kernels.selected_tier(), choices=kernels.tiers())
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 512])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--shapes", default="*", help="which file of shapes/, without .txt")
    parser.add_argument("--zeros", type=float, nargs="+", help="shares of zero weights")
    options = parser.parse_args()
    if options.zeros:
        for line in sparse_lines(options):
            print(line, flush=True)
        return 0

    limits = [kernels.measure_roofline(options.tier, options.threads) for _ in range(3)]
    gflops, gbytes = (max(values) for values in zip(*limits, strict=True))
    print(f"{options.tier}, {options.threads} threads: {gflops:.0f} GFLOP/s, {gbytes:.1f} GB/s")
    print(f"{'weights':8}{'rows':>5}{'inputs':>8}{'outputs':>9}{'GFLOP/s':>9}{'GB/s':>7}  of limit")
    for path in sorted(SHAPES.glob(f"{options.shapes}.txt")):
        for weights in get_args(Weights):
            for rows in options.rows:
                for inputs, outputs, name in shapes(path):
                    taken, size = seconds(
                        options.tier,
                        cast(Weights, weights),
                        rows,
                        inputs,
                        outputs,
                        threads=options.threads,
                        rounds=options.rounds,
                    )
                    operations = 2 * rows * inputs * outputs / taken / 1e9
                    read = size / taken / 1e9
                    share = max(operations / gflops, read / gbytes)
                    print(
                        f"{weights:8}{rows:5}{inputs:8}{outputs:9}{operations:9.1f}{read:7.1f}"
                        f"{share:9.0%}  {name}"
                    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
