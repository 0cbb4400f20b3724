"""The engine against llama.cpp, on GGUF files written from the very same weights."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from contenders import LlamaCpp, Slimformer
from reference.peers import write_gguf
from rounds import Timing, run_rounds
from slimformer.checkpoint import Checkpoint
from slimformer.engine import Engine

DTYPES: tuple[Literal["f32", "bf16"], ...] = ("f32", "bf16")


def measure(
    checkpoint: Checkpoint,
    tokenizer: Path,
    *,
    threads: int,
    prompt: int,
    generate: int,
    rounds: int,
) -> list[tuple[Timing, Timing]]:
    """Ours and theirs for each weight type, all four in the same rounds."""
    context = max(prompt, 16 + generate)
    with tempfile.TemporaryDirectory() as folder:
        contenders: list[Slimformer | LlamaCpp] = []
        for dtype in DTYPES:
            path = Path(folder) / f"{dtype}.gguf"
            write_gguf(checkpoint, tokenizer, path, dtype)
            engine = Engine(checkpoint, weights=dtype, threads=threads)
            contenders.append(Slimformer(f"slimformer {dtype}", engine))
            contenders.append(
                LlamaCpp(f"llama.cpp {dtype}", path, threads=threads, context=context)
            )
        timings = run_rounds(contenders, prompt=prompt, generate=generate, rounds=rounds)
    return list(zip(timings[::2], timings[1::2], strict=True))


def report(pairs: list[tuple[Timing, Timing]], *, prompt: int, generate: int) -> Iterator[str]:
    """Markdown lines: tokens per second, and how many times as fast as llama.cpp."""
    yield "| engine | prefill tokens/s | × llama.cpp | decode tokens/s | × llama.cpp |"
    yield "|---|---:|---:|---:|---:|"
    for ours, theirs in pairs:
        yield (
            f"| {ours.name} | {ours.prefill_rate(prompt):.0f} | "
            f"{ours.prefill_ratio(theirs):.2f} | {ours.decode_rate(generate):.1f} | "
            f"{ours.decode_ratio(theirs):.2f} |"
        )
        yield (
            f"| {theirs.name} | {theirs.prefill_rate(prompt):.0f} | 1 | "
            f"{theirs.decode_rate(generate):.1f} | 1 |"
        )
