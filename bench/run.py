"""Measure by the protocol of README.md and write RESULTS.md."""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import get_args

from encoders import encode_section, installed_encoders
from lineup import line_up
from sections import (
    Workload,
    batch_section,
    compare,
    products_section,
    sparse_section,
    threads_section,
)
from slimformer.checkpoint import load, pull
from slimformer.engine import Engine, Weights
from slimformer.evaluate import SHORT_PROMPT
from slimformer.evaluate.peers import installed_peers

MODEL = "smollm2-135m-instruct"

SECTIONS = ("prefill", "decode", "long", "products", "batch", "threads", "sparse", "encode")
PRODUCT_ROUNDS = 50
"""A matrix product takes a millisecond or so, and the best of these counts."""
LONG_PROMPT = 4096
LONG_GENERATE = 32


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", type=choices(SECTIONS), default=SECTIONS)
    parser.add_argument("--weights", type=choices(get_args(Weights)), default=get_args(Weights))
    parser.add_argument("--peers", type=choices(installed_peers()), default=installed_peers())
    encoders = installed_encoders()
    parser.add_argument("--encoders", type=choices(encoders), default=encoders)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", type=Path, help="keeps the peers' GGUF files here")
    parser.add_argument("--output", type=Path, help="written to besides standard output")
    options = parser.parse_args()
    lines = []
    with tempfile.TemporaryDirectory() as temporary:
        files = options.files or Path(temporary)
        files.mkdir(parents=True, exist_ok=True)
        for line in results(options, files):
            print(line, flush=True)
            lines.append(line)
    if options.output is not None:
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


def choices(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Reads a list such as ``prefill,decode``."""

    def read(text: str) -> tuple[str, ...]:
        found = tuple(text.split(","))
        if not set(found) <= set(known):
            raise argparse.ArgumentTypeError(f"expected some of {', '.join(known)}")
        return found

    return read


def results(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    """Lines of RESULTS.md."""
    path = pull(MODEL)
    checkpoint = load(path)
    rounds, threads = options.rounds, options.threads
    tier = Engine(checkpoint, weights="bf16", threads=threads).tier
    yield "# Results"
    yield ""
    yield "Written by `make bench`; the protocol is in [README.md](README.md)."
    yield ""
    yield f"- model: `{MODEL}`, medians of {rounds} rounds"
    yield f"- processor: {processor()}, {threads} threads, tier {tier}"
    yield f"- peers: {', '.join(peer_versions([*options.peers, *options.encoders]))}"

    workloads = {
        "prefill": Workload(options.prompt, 0),
        "decode": Workload(SHORT_PROMPT, options.generate),
        "long": Workload(LONG_PROMPT, LONG_GENERATE),
    }
    chosen = [workloads[name] for name in workloads if name in options.only]
    if chosen:
        context = max(workload.prompt + workload.generate for workload in chosen)
        teams = list(
            line_up(
                checkpoint,
                path,
                folder,
                options.weights,
                options.peers,
                threads=threads,
                context=context,
            )
        )
        for workload in chosen:
            yield ""
            yield from compare(teams, workload, rounds=rounds)
    if "products" in options.only:
        yield ""
        yield from products_section(
            tier, options.weights, options.prompt, rounds=PRODUCT_ROUNDS, threads=threads
        )
    if "batch" in options.only:
        yield ""
        yield from batch_section(
            checkpoint, options.weights, options.generate, rounds=rounds, threads=threads
        )
    if "threads" in options.only:
        yield ""
        yield from threads_section(checkpoint, options.weights, options.prompt, rounds=rounds)
    if "sparse" in options.only:
        workload = Workload(options.prompt, options.generate)
        yield ""
        yield from sparse_section(
            checkpoint, options.weights, workload, rounds=rounds, threads=threads
        )
    if "encode" in options.only:
        weights = [kind for kind in options.weights if kind != "int4"]
        yield ""
        yield from encode_section(weights, options.encoders, folder, rounds=rounds, threads=threads)


def peer_versions(peers: Sequence[str]) -> Iterator[str]:
    """Packages that the peers come from."""
    packages = {"llama.cpp": "llama-cpp-python", "OpenVINO GenAI": "openvino-genai"}
    names = (packages.get(peer, peer) for peer in peers)
    return (f"{name} {version(name)}" for name in names)


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
