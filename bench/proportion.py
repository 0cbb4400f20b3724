"""What pruning gains against what it removes: a table, and a plot beside it.

Layers, KV groups with their heads, and neurons are removed in steps; the speed-up over the dense
model, measured in interleaved rounds, stands against the one that the operations (prefill) and the
bytes read (decode) predict. Nothing is repaired: only shapes matter here. Written to PROPORTION.md
and proportion.svg.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import matplotlib as mpl
from matplotlib.figure import Figure

from lineup import own_engine
from sections import tell
from slimformer.checkpoint import Checkpoint, load, pull
from slimformer.config import AttentionConfig, FfnConfig
from slimformer.engine import Engine, Weights
from slimformer.evaluate import SHORT_PROMPT, Contender, Times, run_rounds
from slimformer.evaluate.speed import decode_bytes, prefill_flops
from slimformer.prune import Recipe, explicit, prune

MODEL = "smollm2-135m-instruct"
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
STRUCTURES = ("layers", "KV groups", "neurons")
COLOURS = {"layers": "#0072b2", "KV groups": "#e69f00", "neurons": "#009e73"}


@dataclasses.dataclass(frozen=True)
class Point:
    """Speed-ups over the dense model of one pruned one."""

    structure: str
    removed: str
    prefill: float
    prefill_predicted: float
    decode: float
    decode_predicted: float


def main() -> int:
    """Print the table, and write it and the plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", choices=get_args(Weights), default="bf16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("PROPORTION.md"))
    options = parser.parse_args()
    checkpoint = load(pull(MODEL))
    points: list[Point] = []
    for structure in STRUCTURES:
        points += measure(checkpoint, structure, options)
    page = "\n".join(report(points, options))
    print(page)
    options.output.write_text(page + "\n", encoding="utf-8")
    plot(points, options.output.with_name("proportion.svg"))
    return 0


def recipes(checkpoint: Checkpoint, structure: str) -> Iterator[tuple[str, Recipe]]:
    """What is removed, in words, and the recipe that removes it."""
    layers = checkpoint.config.layers
    if structure == "KV groups":
        (attention,) = {layer.attention for layer in layers}
        assert isinstance(attention, AttentionConfig)
        for gone in range(1, attention.n_kv_heads):
            kept = [h for h, kv in enumerate(attention.q_to_kv) if kv < attention.n_kv_heads - gone]
            heads = dict.fromkeys(range(len(layers)), kept)
            yield f"{gone} of {attention.n_kv_heads}", explicit(checkpoint, heads=heads)
        return
    for share in SHARES:
        if structure == "layers":
            gone = round(share * len(layers))
            dropped = sorted({1 + i * (len(layers) - 2) // gone for i in range(gone)})
            yield f"{gone} of {len(layers)}", explicit(checkpoint, drop_layers=dropped)
        else:
            (ffn,) = {layer.ffn for layer in layers}
            assert isinstance(ffn, FfnConfig)
            left = int(ffn.n_neurons * (1 - share)) | 1  # an odd number, as pruning leaves it
            removed = f"{ffn.n_neurons - left} of {ffn.n_neurons}"
            yield removed, explicit(checkpoint, neurons=left)


def measure(checkpoint: Checkpoint, structure: str, options: argparse.Namespace) -> Iterator[Point]:
    """All steps of one structure and the dense model in the same rounds."""

    def engine(model: Checkpoint) -> Engine:
        return own_engine(model, options.weights, threads=options.threads)

    names = ["dense"]
    engines = [engine(checkpoint)]
    for removed, recipe in recipes(checkpoint, structure):
        names.append(removed)
        engines.append(engine(prune(checkpoint, recipe, repair="none")))
    runners = [Contender(*pair) for pair in zip(names, engines, strict=True)]
    prefill, decode = (
        run_rounds(runners, prompt=prompt, generate=generate, repeat=options.rounds, progress=tell)
        for prompt, generate in ((options.prompt, 0), (SHORT_PROMPT, options.generate))
    )
    flops = [prefill_flops(engine.config, options.prompt) for engine in engines]
    read = [decode_bytes(engine) for engine in engines]
    for index in range(1, len(engines)):
        yield Point(
            structure,
            names[index],
            _speedup(prefill, index, "prefill"),
            flops[0] / flops[index],
            _speedup(decode, index, "decode"),
            read[0] / read[index],
        )


def _speedup(rounds: Sequence[Sequence[Times]], index: int, figure: str) -> float:
    ratios = (getattr(times[0], figure) / getattr(times[index], figure) for times in rounds)
    return float(statistics.median(ratios))


def report(points: Sequence[Point], options: argparse.Namespace) -> Iterator[str]:
    """Markdown lines; a share is the measured speed-up over the predicted one."""
    yield "# Speed-ups against what was removed"
    yield ""
    yield (
        f"Written by `make proportion`: `{MODEL}` in {options.weights}, prefill of "
        f"{options.prompt} tokens and decode of {options.generate}, {options.threads} threads, "
        f"medians of {options.rounds} rounds; the protocol is in [README.md](README.md)."
    )
    yield ""
    yield "![measured against predicted](proportion.svg)"
    yield ""
    yield "| removed | prefill × | predicted | share | decode × | predicted | share |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for point in points:
        yield (
            f"| {point.structure}: {point.removed} | {point.prefill:.2f} | "
            f"{point.prefill_predicted:.2f} | {point.prefill / point.prefill_predicted:.2f} | "
            f"{point.decode:.2f} | {point.decode_predicted:.2f} | "
            f"{point.decode / point.decode_predicted:.2f} |"
        )


def plot(points: Sequence[Point], path: Path) -> None:
    """Measured against predicted, with the line on which both are equal."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("prefill", "decode"), strict=True):
        for structure in STRUCTURES:
            chosen = [point for point in points if point.structure == structure]
            axes.plot(
                [getattr(point, f"{name}_predicted") for point in chosen],
                [getattr(point, name) for point in chosen],
                "o-",
                color=COLOURS[structure],
                label=structure,
            )
        most = max(getattr(point, f"{name}_predicted") for point in points)
        axes.plot([1, most], [1, most], "--", color="#666666", linewidth=1)
        axes.set_title(name)
        axes.set_xlabel("predicted speed-up")
        axes.set_ylabel("measured speed-up")
        axes.legend()
    with mpl.rc_context({"svg.hashsalt": "slimformer", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    raise SystemExit(main())
