"""Put a pruned model next to the dense one: shapes, and on demand quality, speed and memory."""

from __future__ import annotations

import dataclasses
import importlib.resources
import math
import os
from collections.abc import Sequence

import slimformer
from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.engine import Engine
from slimformer.evaluate import (
    Contender,
    Footprint,
    Speed,
    evaluate_task,
    evaluate_text,
    find_collapses,
    measure_footprint,
    measure_speed,
    recurring_words,
)
from slimformer.progress import Progress, silent
from slimformer.prune import Recipe
from slimformer.report.results import ModelResults, Quality, Results, Timing
from slimformer.report.summary import describe_layers, zeros_share
from slimformer.stopwatch import SHORT_PROMPT

TEXTS = ("prose", "drama")
EVALUATED_ON = (
    "texts that come with the package: prose (Darwin, On the Origin of Species) and drama "
    "(Shakespeare); recurring words are words of the prose that occurred shortly before"
)
CONTEXT = 1024
MAX_WINDOWS = 3
WORDS = 60
PROMPT = "The lighthouse keeper climbed the stairs every evening. One night"
SAMPLE_TOKENS = 64
PREFILL_TOKENS = 512
DECODED_TOKENS = 64


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A model that is compared: ``model`` is what a new process can load it by."""

    name: str
    model: str | os.PathLike[str]
    checkpoint: Checkpoint
    source_layers: list[int]

    @staticmethod
    def dense(model: str | os.PathLike[str], checkpoint: Checkpoint) -> Candidate:
        """The model that others come from."""
        return Candidate("dense", model, checkpoint, list(range(len(checkpoint.config.layers))))

    @staticmethod
    def pruned(model: str | os.PathLike[str], checkpoint: Checkpoint, recipe: Recipe) -> Candidate:
        """What a recipe made."""
        return Candidate("pruned", model, checkpoint, [layer.source for layer in recipe.layers])


@dataclasses.dataclass(frozen=True)
class _Measurement:
    quality: list[Quality]
    timing: Timing
    sample: str


def outline(dense: Candidate, pruned: Candidate, *, calibrated_on: str) -> Results:
    """The shapes of both, nothing measured."""
    kept = (
        pruned.checkpoint.config.non_embedding_parameters()
        / dense.checkpoint.config.non_embedding_parameters()
    )
    zeros = zeros_share(pruned.checkpoint)
    filled = "" if zeros is None else f", {100 * zeros:.0f} % of its layers zero"
    return Results(
        title=f"{dense.checkpoint.name}, pruned to {100 * kept:.0f} %{filled}",
        version=slimformer.__version__,
        measured_with=None,
        calibrated_on=calibrated_on,
        evaluated_on=None,
        prompt=None,
        models=[_shape(dense), _shape(pruned)],
        importance=None,
        warnings=[],
        notes=[],
    )


def measure(
    results: Results,
    candidates: Sequence[Candidate],
    *,
    threads: int = 0,
    progress: Progress = silent,
) -> Results:
    """Results with quality on the packaged texts, speed, memory and a sample of each model.

    Parameters
    ----------
    results
        What ``outline`` gave.
    candidates
        The same models in the same order.
    threads
        0 takes all cores.
    progress
        Told about every step.
    """
    engines = [Engine(candidate.checkpoint, threads=threads) for candidate in candidates]
    contenders = [
        Contender(candidate.name, engine)
        for candidate, engine in zip(candidates, engines, strict=True)
    ]
    limit = min(engine.config.max_positions for engine in engines)
    speeds = measure_speed(
        contenders,
        prompt=min(PREFILL_TOKENS, limit),
        generate=min(DECODED_TOKENS, limit - SHORT_PROMPT),
        progress=progress,
    )
    footprints = [measure_footprint(candidate.model, threads=threads) for candidate in candidates]
    measured = [
        _Measurement(
            _measure_quality(contender, progress),
            _timing(contender.engine, speed, footprint),
            contender.engine.generate(PROMPT, max_tokens=SAMPLE_TOKENS),
        )
        for contender, speed, footprint in zip(contenders, speeds, footprints, strict=True)
    ]
    first = engines[0]
    dense, pruned = measured
    return dataclasses.replace(
        results,
        measured_with=f"{first.tier} kernels, {first.threads} threads, {first.weights} weights",
        evaluated_on=EVALUATED_ON,
        prompt=PROMPT,
        models=[
            dataclasses.replace(
                model, quality=found.quality, timing=found.timing, sample=found.sample
            )
            for model, found in zip(results.models, measured, strict=True)
        ],
        warnings=find_collapses(
            _perplexities(dense.quality), _perplexities(pruned.quality), dense.sample, pruned.sample
        ),
    )


def _shape(candidate: Candidate) -> ModelResults:
    config = candidate.checkpoint.config
    return ModelResults(
        name=candidate.name,
        parameters=config.parameters(),
        non_embedding_parameters=config.non_embedding_parameters(),
        layers=describe_layers(config),
        source_layers=candidate.source_layers,
        quality=[],
        timing=None,
        sample=None,
    )


def _timing(engine: Engine, speed: Speed, footprint: Footprint) -> Timing:
    return Timing(
        prefill_tokens_per_s=speed.prefill.median,
        decode_tokens_per_s=speed.decode.median,
        prefill_ratio=speed.prefill_ratio,
        decode_ratio=speed.decode_ratio,
        load_s=footprint.load_s,
        peak_memory_bytes=footprint.peak_memory_bytes,
        weight_bytes=engine.weight_bytes,
    )


def _measure_quality(contender: Contender, progress: Progress) -> list[Quality]:
    """Perplexity on both texts, and words of the prose."""

    def tell(what: str, done: int, total: int) -> None:
        progress(f"{contender.name}: {what}", done, total)

    found = []
    for name in TEXTS:
        result = evaluate_text(
            contender.engine, _text(name), context=CONTEXT, max_windows=MAX_WINDOWS, progress=tell
        )
        found.append(
            Quality(name, _finite(result.perplexity), result.bits_per_byte, tokens=result.tokens)
        )
    task = recurring_words(_text("prose"), count=WORDS, name="recurring words")
    answers = evaluate_task(contender.engine, task, progress=tell)
    found.append(
        Quality(
            task.name,
            _finite(answers.target_perplexity),
            accuracy=answers.accuracy,
            standard_error=answers.standard_error,
            items=answers.items,
        )
    )
    return found


def _perplexities(qualities: Sequence[Quality]) -> dict[str, float]:
    return {
        quality.name: math.inf if quality.perplexity is None else quality.perplexity
        for quality in qualities
        if quality.accuracy is None
    }


def _finite(perplexity: float) -> float | None:
    return perplexity if math.isfinite(perplexity) else None


def _text(name: str) -> str:
    file = importlib.resources.files("slimformer") / "data" / f"{name}.txt"
    return file.read_text(encoding="utf-8")
