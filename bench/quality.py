"""Every pruning method on one model: the same calibration, budgets and evaluation.

Writes a table and a plot of quality against speed, QUALITY.md and quality.svg. A short run:
``python bench/quality.py --methods FLAP Slimformer --keep 0.8 --tokens 8192 --windows 2``. Models
stay in the folder --work: the same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
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
RECORD = "quality.json"
"""In a model's folder: its row, and the settings that it is of."""

Maker = Callable[[Checkpoint, float], Checkpoint]


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
    parser.add_argument("--work", type=Path, default=Path("quality-work"))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    rows = list(Comparison(options).rows())
    options.output.mkdir(parents=True, exist_ok=True)
    text = "\n".join(table(options, rows)) + "\n"
    (options.output / "QUALITY.md").write_text(text, encoding="utf-8")
    (options.output / "quality.svg").write_text(plot(rows), encoding="utf-8")
    print(text)
    return 0


class Comparison:
    """One run: the dense model, what pruning reads and what it is judged on."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._dense = load(options.model)
        self._texts = _texts(options.text)

    @functools.cached_property
    def _calibration(self) -> list[str]:
        options = self._options
        if options.calibration:
            return load_calibration(options.calibration)
        return sample_calibration(self._dense, tokens=options.tokens, seed=options.seed)

    @functools.cached_property
    def _base(self) -> dict[str, float]:
        return self._perplexities(self._dense)

    def rows(self) -> Iterator[Row]:
        """The dense model, then each method at each budget, whose speeds are taken together."""
        yield Row(DENSE, 1.0, 1.0, 0.0, dict.fromkeys(self._texts, 1.0), 1.0, 1.0)
        for keep in self._options.keep:
            rows = []
            for method in self._options.methods:
                folder = self._options.work / f"{method}-{keep:g}"
                row = self._known(folder) or self._made(folder, method, keep)
                if row is not None:
                    print(row, file=sys.stderr)
                    rows.append((row, folder))
            yield from self._timed(rows)

    def _known(self, folder: Path) -> Row | None:
        """The row of a model that was made before, with these settings."""
        if not (folder / RECORD).exists():
            return None
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return Row(**record["row"]) if record["settings"] == _settings(self._options) else None

    def _made(self, folder: Path, method: str, keep: float) -> Row | None:
        """Make a model, keep it and measure its quality; a method that cannot do it says why."""
        make = _makers(self._options, self._calibration)[method]
        start = time.perf_counter()
        try:
            slim = make(self._dense, keep)
        except SlimformerError as error:
            print(f"{method} at {keep}: {error}", file=sys.stderr)
            return None
        seconds = time.perf_counter() - start
        slim.save(folder)
        found = self._perplexities(slim)
        left, whole = (model.config.non_embedding_parameters() for model in (slim, self._dense))
        perplexity = {name: found[name] / self._base[name] for name in found}
        row = Row(method, keep, left / whole, seconds, perplexity)
        record = {"settings": _settings(self._options), "row": dataclasses.asdict(row)}
        (folder / RECORD).write_text(json.dumps(record), encoding="utf-8")
        return row

    def _perplexities(self, model: Checkpoint) -> dict[str, float]:
        engine = Engine(model, weights="f32", threads=self._options.threads)
        windows = self._options.windows
        return {
            name: evaluate_text(engine, text, context=CONTEXT, max_windows=windows).perplexity
            for name, text in self._texts.items()
        }

    def _timed(self, rows: list[tuple[Row, Path]]) -> Iterator[Row]:
        """The rows with speeds relative to the dense model, in bf16, all in the same rounds."""
        if self._options.rounds < 1:
            yield from (row for row, _ in rows)
            return
        models = [(DENSE, self._dense), *((row.method, load(folder)) for row, folder in rows)]
        contenders = [
            Contender(name, Engine(model, weights="bf16", threads=self._options.threads))
            for name, model in models
        ]
        speeds = measure_speed(contenders, repeat=self._options.rounds)[1:]
        for (row, _), speed in zip(rows, speeds, strict=True):
            yield row.timed(speed.prefill_ratio, speed.decode_ratio)


def _settings(options: argparse.Namespace) -> dict[str, str]:
    """What a model and its quality depend on."""
    names = ("model", "calibration", "tokens", "text", "windows", "minutes", "seed")
    return {name: str(getattr(options, name)) for name in names}


def _makers(options: argparse.Namespace, calibration: list[str]) -> dict[str, Maker]:
    """From the dense model and a budget to a pruned model, by method."""
    common = {"seed": options.seed, "threads": options.threads}

    def baseline(name: str) -> Maker:
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
        texts = calibration if options.calibration else None  # the teacher then writes some
        found = recover(ours(dense, keep), dense, settings, texts=texts, threads=options.threads)
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


if __name__ == "__main__":
    sys.exit(main())
