"""Measure everything by the protocol of README.md and write RESULTS.md."""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import engine as engine_bench
import peers
from slimformer.checkpoint import load, pull
from slimformer.engine import Engine, measure_roofline

MODEL = "smollm2-135m-instruct"


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("RESULTS.md"))
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    text = "\n".join(results(options)) + "\n"
    options.output.write_text(text, encoding="utf-8")
    print(text)
    return 0


def results(options: argparse.Namespace) -> Iterator[str]:
    """Lines of RESULTS.md."""
    path = pull(MODEL)
    checkpoint = load(path)
    tier = Engine(checkpoint, weights="bf16", threads=options.threads).tier
    sizes = {"prompt": options.prompt, "generate": options.generate}
    protocol = {**sizes, "threads": options.threads, "rounds": options.rounds}

    before = measure_roofline(threads=options.threads)
    pairs = peers.measure(checkpoint, path, **protocol)
    after = measure_roofline(threads=options.threads)
    roofline = {name: max(value, after[name]) for name, value in before.items()}

    yield "# Results"
    yield ""
    yield "Written by `make bench`; the protocol is in [README.md](README.md)."
    yield ""
    yield f"- model: `{MODEL}`, prompt {options.prompt}, generated {options.generate}"
    yield f"- processor: {processor()}, {options.threads} threads, tier {tier}"
    yield f"- peer: llama-cpp-python {version('llama-cpp-python')}, built on this machine"
    yield (
        f"- limits measured in the same run: {roofline['gflops']:.0f} GFLOP/s in f32, "
        f"{roofline['gbytes_per_s']:.1f} GB/s"
    )
    yield ""
    yield f"## Against llama.cpp, medians of {options.rounds} interleaved rounds"
    yield ""
    yield from peers.report(pairs, **sizes)
    yield ""
    yield "## Against the machine"
    yield ""
    ours = {timing.name: timing for timing, _ in pairs}
    yield from engine_bench.report_limits(
        ours, checkpoint, roofline, threads=options.threads, **sizes
    )
    yield ""
    yield "## Every second layer removed, against the dense model"
    yield ""
    yield from engine_bench.report_half(engine_bench.measure_half(checkpoint, **protocol))
    yield ""
    yield "## Long context and batches, one run each"
    yield ""
    yield from engine_bench.report_loads(checkpoint, threads=options.threads)


def processor() -> str:
    """What the machine calls its processor."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        match = re.search(r"^model name\s*: (.+)$", cpuinfo.read_text(), re.MULTILINE)
        if match:
            return match[1]
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
