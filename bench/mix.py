"""Which mix of structure, zeros and bits loses least at a given size, or at a given speed.

Prunes the model to every share of structure, gives each result every share of zeros, runs each of
those in every weight type, and measures bytes, loss and decode speed. Writes a table and the
frontiers as a plot, MIX.md and mix.svg, and mixes.json, which ``slimformer prune --mix auto`` goes
by. What is finished stays in the folder --work: an interrupted sweep goes on where it was, and
``--seconds`` ends one on purpose. The machine should be idle while speeds are measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mix_report import Row, plot, points_json, table
from perplexity import MODEL, cut, of_llama_cpp
from reference.peers import perplexity
from slimformer.checkpoint import Checkpoint, load, pull
from slimformer.engine import Engine, Weights
from slimformer.evaluate import Contender, measure_speed, read_text
from slimformer.prune import Recipe, load_calibration, plan, prune

DECODED = 64
LASTING = ("text", "calibration", "tokens", "windows", "seed")
LLAMA_TYPES = ("Q8_0", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")


def main() -> int:
    """Run what is left of the sweep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True, help="what loss is measured on")
    parser.add_argument("--calibration", type=Path, nargs="+", required=True)
    parser.add_argument("--keep", type=float, nargs="+", default=[1.0, 0.9, 0.8, 0.7])
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.0, 0.4, 0.5, 0.6])
    parser.add_argument("--weights", nargs="+", default=["bf16", "int8", "int4"])
    parser.add_argument("--llama", nargs="*", default=LLAMA_TYPES, help="types of llama.cpp")
    parser.add_argument("--tokens", type=int, default=40960, help="of calibration")
    parser.add_argument("--windows", type=int, default=8, help="of 2,048 tokens of the text")
    parser.add_argument("--rounds", type=int, default=5, help="of timing; 0 leaves it out")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin nothing after them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("mix-work"))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if different := other_settings(options):
        parser.error(f"{options.work} holds a sweep with another {different}; name another --work")
    sweep = Sweep(options)
    for step in sweep.steps():
        print(step, file=sys.stderr, flush=True)
        if sweep.spent():
            print("time is up; the same command goes on from here", file=sys.stderr)
            return 0
    rows = sweep.rows()
    options.output.mkdir(parents=True, exist_ok=True)
    text = "\n".join(table(options, rows)) + "\n"
    (options.output / "MIX.md").write_text(text, encoding="utf-8")
    (options.output / "mix.svg").write_text(plot(rows), encoding="utf-8")
    (options.output / "mixes.json").write_text(points_json(rows), encoding="utf-8")
    print(text)
    return 0


def other_settings(options: argparse.Namespace) -> str:
    """Which of the settings that decide what is found are others than those of the work begun."""
    given = {name: str(getattr(options, name)) for name in LASTING}
    path = options.work / "settings.json"
    if not path.exists():
        path.write_text(json.dumps(given, indent=1), encoding="utf-8")
    begun = json.loads(path.read_text(encoding="utf-8"))
    return ", ".join(name for name in LASTING if begun.get(name) != given[name])


@dataclasses.dataclass(frozen=True)
class Variant:
    """A model of the sweep: what it keeps, and how much of that is zero."""

    keep: float
    sparsity: float

    @property
    def folder(self) -> str:
        """Where it is kept below the folder of the sweep."""
        return f"keep-{self.keep:g}-zeros-{self.sparsity:g}"


class Sweep:
    """What has been measured so far, on disk, and what is left to do."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._start = time.monotonic()
        self._path = options.work / "found.json"
        self._found: dict[str, dict[str, float]] = {}
        if self._path.exists():
            self._found = json.loads(self._path.read_text(encoding="utf-8"))
        self._source = load(MODEL)
        variants = [Variant(keep, zeros) for keep in options.keep for zeros in options.sparsity]
        # The structure is pruned before the zeros of what is left are chosen.
        self._variants = sorted(variants, key=lambda one: (-one.keep, one.sparsity))

    @functools.cached_property
    def _texts(self) -> list[str]:
        return load_calibration([str(path) for path in self._options.calibration])

    @functools.cached_property
    def _windows(self) -> list[list[int]]:
        return cut(self._source, read_text(self._options.text), self._options.windows)

    def spent(self) -> bool:
        """Whether time is up."""
        return bool(time.monotonic() - self._start > self._options.seconds)

    def steps(self) -> Iterator[str]:
        """Do what is left, naming each step when it is done."""
        for variant in self._variants:
            if not (self._options.work / variant.folder).exists():
                self._make(variant)
                yield f"{variant.folder}: made"
            for weights in self._options.weights:
                if self._name(variant, weights) not in self._found:
                    self._measure_loss(variant, weights)
                    yield f"{self._name(variant, weights)}: loss"
        missing = [one for one in self._options.llama if f"llama.cpp {one}" not in self._found]
        if missing:
            self._measure_llama(missing)
            yield "llama.cpp: loss"
        if self._options.rounds > 0 and not all("decode" in one for one in self._ours().values()):
            self._measure_speed()
            yield "speed"

    def rows(self) -> list[Row]:
        """All that was measured, losses against the whole model in bf16."""
        reference = self._found["keep-1-zeros-0 bf16"]
        rows = []
        for variant in self._variants:
            for weights in self._options.weights:
                one = self._found[self._name(variant, weights)]
                nats = one["nats"] - reference["nats"]
                label = (variant.keep, variant.sparsity, weights)
                rows.append(Row(*label, nats, one["bytes"], one.get("decode", math.nan)))
        for kind in self._options.llama:
            one = self._found[f"llama.cpp {kind}"]
            nats = one["nats"] - self._found["llama.cpp F32"]["nats"]
            rows.append(Row(1.0, 0.0, f"llama.cpp {kind}", nats, one["bytes"], math.nan))
        return rows

    def _name(self, variant: Variant, weights: str) -> str:
        return f"{variant.folder} {weights}"

    def _ours(self) -> dict[str, dict[str, float]]:
        names = (self._name(one, w) for one in self._variants for w in self._options.weights)
        return {name: self._found[name] for name in names}

    def _model(self, variant: Variant) -> Checkpoint:
        return load(self._options.work / variant.folder)

    def _make(self, variant: Variant) -> None:
        """A model from the whole one, or with zeros from the one without."""
        common: dict[str, Any] = {
            "calibration": self._texts,
            "seed": self._options.seed,
            "threads": self._options.threads,
            "state": self._options.work / f"{variant.folder}-unfinished",
        }
        if variant.sparsity:
            before = Variant(variant.keep, 0.0)
            if not (self._options.work / before.folder).exists():
                self._make(before)
            source = self._model(before)
            recipe = Recipe.identity(source)
            common["sparsity"] = variant.sparsity
        elif variant.keep == 1:
            source, recipe = self._source, Recipe.identity(self._source)
        else:
            source = self._source
            recipe = plan(source, keep=variant.keep, **common)
        slim = prune(source, recipe, tokens=self._options.tokens, **common)
        slim.save(self._options.work / variant.folder)

    def _keep(self, name: str, **found: float) -> None:
        self._found.setdefault(name, {}).update(found)
        unfinished = self._path.with_suffix(".part")
        unfinished.write_text(json.dumps(self._found, indent=1), encoding="utf-8")
        unfinished.replace(self._path)

    def _engine(self, variant: Variant, weights: Weights) -> Engine:
        return Engine(
            self._model(variant), weights=weights, sparse="smaller", threads=self._options.threads
        )

    def _measure_loss(self, variant: Variant, weights: Weights) -> None:
        engine = self._engine(variant, weights)
        nats = math.log(perplexity(engine.score(self._windows)))
        self._keep(self._name(variant, weights), nats=nats, bytes=engine.weight_bytes)

    def _measure_llama(self, types: Sequence[str]) -> None:
        threads = self._options.threads or 2
        for name, found, size in of_llama_cpp(
            self._source, pull(MODEL), self._windows, threads, types
        ):
            self._keep(name, nats=math.log(found), bytes=size)

    def _measure_speed(self) -> None:
        """Everyone in turns, the whole model in bf16 first."""
        first = (Variant(1.0, 0.0), "bf16")
        members = [(one, w) for one in self._variants for w in self._options.weights]
        members = [first, *(member for member in members if member != first)]
        contenders = [
            Contender(self._name(variant, weights), self._engine(variant, weights))
            for variant, weights in members
        ]
        speeds = measure_speed(contenders, prompt=16, generate=DECODED, repeat=self._options.rounds)
        for speed in speeds:
            self._keep(speed.name, decode=speed.decode_ratio)


if __name__ == "__main__":
    sys.exit(main())
