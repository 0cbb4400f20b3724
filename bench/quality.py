"""Every pruning method on one model: the same calibration, budgets and evaluation.

Writes a table and a plot of quality against speed, QUALITY.md and quality.svg. A short run:
``python bench/quality.py --methods FLAP Slimformer --keep 0.8 --tokens 8192 --windows 2``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path

from quality_report import Row, plot, table
from slimformer.baselines import METHODS, Task
from slimformer.checkpoint import Checkpoint, load
from slimformer.engine import Engine
from slimformer.errors import SlimformerError
from slimformer.evaluate import Contender, evaluate_text, measure_speed, read_text
from slimformer.prune import load_calibration, plan, prune, sample_calibration
from slimformer.prune.calibrate import make_windows
from slimformer.prune.importance import BLOCKS
from slimformer.train import Settings, recover

MODEL = "smollm2-135m-instruct"
OURS = "Slimformer"
DEPTH = "Slimformer-depth"
RECOVERED = "Slimformer+recover"
DENSE = "dense"
CONTEXT = 2048


def main() -> int:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument(
        "--methods",
        nargs="+",
        default=[*METHODS, OURS, DEPTH],
        choices=[*METHODS, OURS, DEPTH, RECOVERED],
        metavar="NAME",
        help=f"all but {RECOVERED}, which trains, unless given",
    )
    parser.add_argument("--keep", type=float, nargs="+", default=[0.9, 0.8, 0.7])
    parser.add_argument("--calibration", type=Path, nargs="+", help="else the model writes some")
    parser.add_argument("--tokens", type=int, default=32768, help="of calibration")
    parser.add_argument("--text", type=Path, nargs="+", help="else two texts of the package")
    parser.add_argument("--windows", type=int, default=8, help=f"of {CONTEXT} tokens of each text")
    parser.add_argument("--minutes", type=float, default=10.0, help="of recovery")
    parser.add_argument("--rounds", type=int, default=5, help="of timing; 0 leaves it out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    rows = list(compare(options))
    options.output.mkdir(parents=True, exist_ok=True)
    text = "\n".join(table(options, rows)) + "\n"
    (options.output / "QUALITY.md").write_text(text, encoding="utf-8")
    (options.output / "quality.svg").write_text(plot(rows), encoding="utf-8")
    print(text)
    return 0


def compare(options: argparse.Namespace) -> Iterator[Row]:
    """The dense model, then each method at each budget; speeds are taken together at the end."""
    dense = load(options.model)
    calibration = (
        load_calibration(options.calibration)
        if options.calibration
        else sample_calibration(dense, tokens=options.tokens, seed=options.seed)
    )
    texts = _texts(options.text)
    base = _perplexities(Engine(dense, weights="f32", threads=options.threads), texts, options)
    yield Row(DENSE, 1.0, 1.0, 0.0, dict.fromkeys(base, 1.0), 1.0, 1.0)
    for keep in options.keep:
        models: list[tuple[Row, Checkpoint]] = []
        for method in options.methods:
            start = time.perf_counter()
            try:
                slim = _makers(options, calibration)[method](dense, keep)
            except SlimformerError as error:
                print(f"{method} at {keep}: {error}", file=sys.stderr)
                continue
            seconds = time.perf_counter() - start
            engine = Engine(slim, weights="f32", threads=options.threads)
            found = _perplexities(engine, texts, options)
            share = slim.config.non_embedding_parameters() / dense.config.non_embedding_parameters()
            row = Row(
                method, keep, share, seconds, {name: found[name] / base[name] for name in base}
            )
            print(row, file=sys.stderr)
            models.append((row, slim))
        yield from _timed(options, dense, models)


def _makers(
    options: argparse.Namespace, calibration: list[str]
) -> dict[str, Callable[[Checkpoint, float], Checkpoint]]:
    """From the dense model and a budget to a pruned model, by method."""
    common = {"seed": options.seed, "threads": options.threads}

    def baseline(name: str) -> Callable[[Checkpoint, float], Checkpoint]:
        def make(dense: Checkpoint, keep: float) -> Checkpoint:
            windows = make_windows(dense, calibration, tokens=options.tokens, seed=options.seed)
            return METHODS[name](Task(dense, keep, windows, options.threads))

        return make

    def ours(dense: Checkpoint, keep: float) -> Checkpoint:
        recipe = plan(dense, keep=keep, calibration=calibration, **common)
        return prune(dense, recipe, calibration=calibration, tokens=options.tokens, **common)

    def depth(dense: Checkpoint, keep: float) -> Checkpoint:
        recipe = plan(
            dense, keep=keep, structures=BLOCKS, links=True, calibration=calibration, **common
        )
        return prune(dense, recipe, calibration=calibration, tokens=options.tokens, **common)

    def recovered(dense: Checkpoint, keep: float) -> Checkpoint:
        settings = Settings(minutes=options.minutes, seed=options.seed)
        slim = ours(dense, keep)
        found = recover(slim, dense, settings, texts=calibration, threads=options.threads)
        return found.checkpoint

    return {
        **{name: baseline(name) for name in METHODS},
        OURS: ours,
        DEPTH: depth,
        RECOVERED: recovered,
    }


def _texts(paths: list[Path] | None) -> dict[str, str]:
    if paths:
        return {path.stem: read_text(path) for path in paths}
    data = resources.files("slimformer") / "data"
    return {name: (data / f"{name}.txt").read_text(encoding="utf-8") for name in ("prose", "drama")}


def _perplexities(
    engine: Engine, texts: dict[str, str], options: argparse.Namespace
) -> dict[str, float]:
    return {
        name: evaluate_text(engine, text, context=CONTEXT, max_windows=options.windows).perplexity
        for name, text in texts.items()
    }


def _timed(
    options: argparse.Namespace, dense: Checkpoint, models: list[tuple[Row, Checkpoint]]
) -> Iterator[Row]:
    """The rows with speeds relative to the dense model, in bf16, all in the same rounds."""
    if options.rounds < 1:
        yield from (row for row, _ in models)
        return
    named = [(DENSE, dense), *((row.method, slim) for row, slim in models)]
    contenders = [
        Contender(name, Engine(model, weights="bf16", threads=options.threads))
        for name, model in named
    ]
    speeds = measure_speed(contenders, repeat=options.rounds)[1:]
    for (row, _), speed in zip(models, speeds, strict=True):
        yield row.timed(speed.prefill_ratio, speed.decode_ratio)


if __name__ == "__main__":
    sys.exit(main())
