"""The engine against the machine's limits, and a pruned model against what was removed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np

from contenders import Slimformer
from rounds import Timing, run_rounds
from slimformer.checkpoint import Checkpoint
from slimformer.engine import Engine
from slimformer.evaluate.speed import decode_bytes, prefill_flops
from slimformer.prune import explicit, prune

DTYPES: tuple[Literal["f32", "bf16"], ...] = ("f32", "bf16")
LONG_PROMPT = 4096
BATCH = 8
BATCH_TOKENS = 32


def report_limits(
    timings: Mapping[str, Timing],
    checkpoint: Checkpoint,
    roofline: Mapping[str, float],
    *,
    prompt: int,
    generate: int,
    threads: int,
) -> Iterator[str]:
    """Markdown lines: operations and bytes per second, and the share of what the machine can."""
    yield "| weights | prefill GFLOP/s | of the limit | decode GB/s | of the limit |"
    yield "|---|---:|---:|---:|---:|"
    for dtype in DTYPES:
        timing = timings[f"slimformer {dtype}"]
        engine = Engine(checkpoint, weights=dtype, threads=threads)
        flops = prefill_flops(checkpoint.config, prompt) / prompt * timing.prefill_rate(prompt)
        read = decode_bytes(engine) * timing.decode_rate(generate)
        yield (
            f"| {dtype} | {flops / 1e9:.0f} | {flops / 1e9 / roofline['gflops']:.0%} | "
            f"{read / 1e9:.1f} | {read / 1e9 / roofline['gbytes_per_s']:.0%} |"
        )


@dataclasses.dataclass(frozen=True)
class Proportion:
    """Speed-up of a pruned model, measured and predicted from what was removed."""

    dtype: str
    prefill: float
    prefill_predicted: float
    decode: float
    decode_predicted: float


def measure_half(
    checkpoint: Checkpoint, *, threads: int, prompt: int, generate: int, rounds: int
) -> list[Proportion]:
    """Every second layer removed: the dense model and the pruned one in the same rounds."""
    dropped = range(1, len(checkpoint.config.layers), 2)
    half = prune(checkpoint, explicit(checkpoint, drop_layers=tuple(dropped)), repair="none")
    results = []
    for dtype in DTYPES:
        engines = [Engine(model, weights=dtype, threads=threads) for model in (checkpoint, half)]
        contenders = [
            Slimformer(name, engine)
            for name, engine in zip(("dense", "half"), engines, strict=True)
        ]
        dense, pruned = run_rounds(contenders, prompt=prompt, generate=generate, rounds=rounds)
        flops = [prefill_flops(engine.config, prompt) for engine in engines]
        read = [decode_bytes(engine) for engine in engines]
        results.append(
            Proportion(
                dtype,
                pruned.prefill_ratio(dense),
                flops[0] / flops[1],
                pruned.decode_ratio(dense),
                read[0] / read[1],
            )
        )
    return results


def report_half(proportions: list[Proportion]) -> Iterator[str]:
    """Markdown lines of measured against predicted speed-ups."""
    yield "| weights | prefill × | predicted | share | decode × | predicted | share |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for row in proportions:
        yield (
            f"| {row.dtype} | {row.prefill:.2f} | {row.prefill_predicted:.2f} | "
            f"{row.prefill / row.prefill_predicted:.2f} | {row.decode:.2f} | "
            f"{row.decode_predicted:.2f} | {row.decode / row.decode_predicted:.2f} |"
        )


def report_loads(checkpoint: Checkpoint, *, threads: int) -> Iterator[str]:
    """Markdown lines: a long prompt, decoding after it, and a batch of sequences."""
    yield (
        f"| weights | prefill of {LONG_PROMPT} tokens/s | decode after it tokens/s | "
        f"decode of {BATCH} sequences tokens/s |"
    )
    yield "|---|---:|---:|---:|"
    ids = np.random.default_rng(0).integers(0, checkpoint.config.vocab_size, LONG_PROMPT)
    for dtype in DTYPES:
        engine = Engine(checkpoint, weights=dtype, threads=threads)
        session = engine.session(capacity=LONG_PROMPT + BATCH_TOKENS)
        start = time.perf_counter()
        logits = session.extend(ids)
        prefill = LONG_PROMPT / (time.perf_counter() - start)

        start = time.perf_counter()
        for _ in range(BATCH_TOKENS):
            logits = session.extend([int(logits.argmax())])
        decode = BATCH_TOKENS / (time.perf_counter() - start)

        sessions = [engine.session(capacity=16 + BATCH_TOKENS) for _ in range(BATCH)]
        rows = engine.forward(sessions, [ids[16 * i : 16 * i + 16] for i in range(BATCH)])
        start = time.perf_counter()
        for _ in range(BATCH_TOKENS):
            rows = engine.forward(sessions, [[int(row.argmax())] for row in rows])
        batch = BATCH * BATCH_TOKENS / (time.perf_counter() - start)
        yield f"| {dtype} | {prefill:.0f} | {decode:.1f} | {batch:.1f} |"
