"""The whole road on a real model: prune, repair, save, reload, compare with the dense one."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from slimformer.checkpoint import load
from slimformer.engine import Engine
from slimformer.errors import SlimformerError
from slimformer.evaluate import logits_digest, measure_footprint
from slimformer.progress import Progress, silent
from slimformer.prune import plan, profile, prune, sample_calibration
from slimformer.report.comparison import Candidate, measure, outline
from slimformer.report.results import Importance, Results

MODEL = "smollm2-135m-instruct"
MODEL_FOLDER = "model"
PROFILE_TOKENS = 2048
BLOCK_INFLUENCE = "block influence (1 - cosine of the residual stream before and after)"


def run_demo(
    folder: Path,
    *,
    model: str = MODEL,
    keep: float = 0.8,
    seed: int = 0,
    threads: int = 0,
    progress: Progress = silent,
) -> Results:
    """Prune a model and compare it with what it came from.

    Parameters
    ----------
    folder
        Where the pruned model goes, into a folder ``model``.
    model
        The dense model.
    keep
        Share of the parameters outside the embedding that stays.
    seed
        Of the calibration text, which is sampled from the dense model.
    threads
        0 takes all cores.
    progress
        Told about every step.

    Raises
    ------
    SlimformerError
        The saved model, loaded in another process, is not the one that was made.
    """
    start = time.perf_counter()
    dense = load(model, progress=progress)
    texts = sample_calibration(dense, seed=seed, threads=threads, progress=progress)
    importance = profile(
        dense,
        calibration=texts,
        tokens=PROFILE_TOKENS,
        seed=seed,
        threads=threads,
        progress=progress,
    )
    recipe = plan(
        dense, keep=keep, calibration=texts, seed=seed, threads=threads, progress=progress
    )
    slim = prune(dense, recipe, calibration=texts, seed=seed, threads=threads, progress=progress)
    saved = folder / MODEL_FOLDER
    slim.save(saved)
    seconds = time.perf_counter() - start
    _check_identity(Engine(slim, threads=threads), saved, threads)

    candidates = (
        Candidate.dense(model, dense),
        Candidate.pruned(saved, load(saved), recipe),
    )
    results = outline(
        *candidates,
        calibrated_on=f"{len(texts)} passages that the dense model wrote itself (seed {seed})",
    )
    results = measure(results, candidates, threads=threads, progress=progress)
    return dataclasses.replace(
        results,
        importance=Importance(BLOCK_INFLUENCE, list(importance.attention), list(importance.ffn)),
        notes=[
            f"Calibrating, planning, pruning, repairing and saving took {seconds:.0f} s.",
            "The saved model, loaded in a new process, gave the same logits bit for bit.",
        ],
    )


def _check_identity(made: Engine, saved: Path, threads: int) -> None:
    if logits_digest(made) != measure_footprint(saved, threads=threads).logits_sha256:
        raise SlimformerError(f"{saved}: the saved model differs from the one that was made")
