"""Attention on its own over the shapes in shapes/attention, as shares of what the machine can do.

The keys and values of many layers are read in turn, so that they come from memory as a model's do;
the best of many rounds is reported. One row is decoding (GB/s of keys and values read), many are
prefill (GFLOP/s, the unseen half of a long prompt not counted).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Literal, cast, get_args

from slimformer import _kernels as kernels

Kv = Literal["f32", "bf16", "int8"]

SHAPES = Path(__file__).with_name("shapes") / "attention" / "layers.txt"

STREAM_BYTES = 96 << 20
"""Keys and values that one round reads: three times a large L3 cache."""

PREFILL_LAYERS = 2


def shapes() -> list[tuple[int, int, int, str]]:
    """Query heads, KV heads, head width and name of every line."""
    lines = [line for line in SHAPES.read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    fields = [line.split(maxsplit=3) for line in lines if line]
    return [(int(heads), int(kv), int(width), name) for heads, kv, width, name in fields]


def kv_bytes(kv: Kv, kv_heads: int, width: int) -> int:
    """Bytes of the keys and values of one position in one layer."""
    element = {"f32": 4, "bf16": 2, "int8": 1}[kv]
    scale = 4 if kv == "int8" else 0
    return 2 * kv_heads * (width * element + scale)


def main() -> int:
    """Print one line a shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tier", default=kernels.selected_tier(), choices=kernels.tiers())
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, nargs="+", default=[512, 4096])
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    limits = [kernels.measure_roofline(options.tier, options.threads) for _ in range(3)]
    gflops, gbytes = (max(values) for values in zip(*limits, strict=True))
    print(f"{options.tier}, {options.threads} threads: {gflops:.0f} GFLOP/s, {gbytes:.1f} GB/s")
    print(f"{'kv':5}{'rows':>5}{'context':>8}{'us':>10}{'GFLOP/s':>9}{'GB/s':>7}  of limit")
    for heads, kv_heads, width, name in shapes():
        for kv in get_args(Kv):
            for context in options.context:
                read = kv_bytes(cast(Kv, kv), kv_heads, width) * context
                for rows in (1, context):
                    taken = kernels.time_attention(
                        options.tier,
                        cast(Kv, kv),
                        heads=heads,
                        kv_heads=kv_heads,
                        head_dim=width,
                        context=context,
                        rows=rows,
                        layers=max(1, STREAM_BYTES // read) if rows == 1 else PREFILL_LAYERS,
                        threads=options.threads,
                        repeats=options.rounds,
                    )
                    seen = context if rows == 1 else (context + 1) / 2
                    done = 4 * heads * width * rows * seen / taken / 1e9
                    rate = read / taken / 1e9
                    share = max(done / gflops, rate / gbytes)
                    print(
                        f"{kv:5}{rows:5}{context:8}{taken * 1e6:10.1f}{done:9.1f}{rate:7.1f}"
                        f"{share:9.0%}  {name}"
                    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
