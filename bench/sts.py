"""Sentence encoders on rated pairs of sentences: quality beside speed, dense beside pruned.

    python bench/sts.py stsb-en-dev.csv all-minilm-l6-v2 minilm-80 --peers sentence-transformers

The file has a line for each pair: two sentences and how alike people find them. Quality is
Spearman's correlation of that with the cosine of the vectors.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt

from encoders import BATCH, Encoder, in_turns, installed_encoders, open_encoder
from run import choices
from slimformer.checkpoint import load, pull
from slimformer.engine import Engine, Weights

TIMED = 10
"""Batches that are timed; quality is of all pairs."""


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pairs", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--weights", choices=get_args(Weights), default="f32")
    parser.add_argument("--peers", type=choices(installed_encoders()), default=())
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    first, second, rated = read_pairs(options.pairs)
    with tempfile.TemporaryDirectory() as folder:
        for line in table(options, Path(folder), first, second, rated):
            print(line, flush=True)
    return 0


def read_pairs(path: Path) -> tuple[list[str], list[str], list[float]]:
    """Both sentences of every pair, and their rating."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    return [row[0] for row in rows], [row[1] for row in rows], [float(row[2]) for row in rows]


def table(
    options: argparse.Namespace,
    folder: Path,
    first: Sequence[str],
    second: Sequence[str],
    rated: Sequence[float],
) -> Iterator[str]:
    """One line a model, and one a peer with the first of them; times are taken in turns."""
    encoders, sizes = [], []
    for name in options.models:
        model = load(name)
        engine = Engine(model, weights=options.weights, threads=options.threads)
        encoders.append(Encoder(f"{name}, {options.weights}", engine.encode))
        sizes.append(f"{model.config.non_embedding_parameters() / 1e6:.2f}")
    for peer in options.peers:
        path = Path(options.models[0])
        path = path if path.exists() else pull(options.models[0])
        encoders.append(open_encoder(peer, path, folder, options.threads))
        sizes.append(sizes[0])
    batches = [list(first[start : start + BATCH]) for start in range(0, len(first), BATCH)][:TIMED]
    correlations = [
        spearman((encoder.encode(list(first)) * encoder.encode(list(second))).sum(axis=1), rated)
        for encoder in encoders
    ]
    seconds = in_turns(encoders, batches, options.rounds)
    yield "| model | parameters but the embedding, M | Spearman | sentences/s | × the first |"
    yield "|---|---:|---:|---:|---:|"
    timed = sum(map(len, batches))
    for encoder, size, quality, times in zip(encoders, sizes, correlations, seconds, strict=True):
        ratio = statistics.median(a / b for a, b in zip(seconds[0], times, strict=True))
        rate = timed / statistics.median(times)
        yield f"| {encoder.name} | {size} | {quality:.4f} | {rate:.0f} | {ratio:.2f} |"


def spearman(found: npt.ArrayLike, rated: npt.ArrayLike) -> float:
    """The correlation of ranks, equal values sharing theirs."""
    return float(np.corrcoef(_ranks(found), _ranks(rated))[0, 1])


def _ranks(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: npt.NDArray[np.float64] = (np.cumsum(counts) - (counts + 1) / 2)[place]
    return ranks


if __name__ == "__main__":
    sys.exit(main())
