"""Recovery by training: a pruned model learns from the dense one what it has lost.

Distillation end to end (Hinton et al. 2015, arXiv 1503.02531): the student's predictions are drawn
to the teacher's on every token and to the text's own next one, its residual streams to the
teacher's. Embedding and head stay as they are: of them pruning takes rows, and changes none. Of a
student that has lost tokens the teacher is the dense model without those tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.errors import ConfigError, RecipeError
from slimformer.progress import Progress, silent
from slimformer.prune.recipe import Recipe
from slimformer.prune.surgery import apply
from slimformer.train.optional import require_torch
from slimformer.train.settings import Recovery, Report, Settings, ignore
from slimformer.train.windows import training_windows


def recover(
    student: Checkpoint,
    teacher: Checkpoint,
    settings: Settings,
    *,
    texts: Sequence[str] | None = None,
    state: Path | None = None,
    threads: int = 0,
    progress: Progress = silent,
    report: Report = ignore,
) -> Recovery:
    """Train a pruned model to predict what the dense one predicts and what the text goes on with.

    What comes back predicts held-out text at least as well as the student did: weights are
    kept only where that text confirms them. It has the student's shape, types and zeros.

    Parameters
    ----------
    student
        The pruned model.
    teacher
        The dense model that it was made from, or another with its vocabulary.
    settings
        How long and how to train.
    texts
        What to read; without any the teacher writes some.
    state
        A file that the work is saved to on its way, and goes on from if it is there, with the same
        settings or another budget. Remove it when the result is safe.
    threads
        0 takes all cores.
    progress
        Told of the preparations.
    report
        Told after every step.

    Raises
    ------
    MissingPackageError
        PyTorch is not installed.
    ConfigError
        The models do not go together, or the state is that of other work.
    FormatError
        The state cannot be read.
    DataError
        Text that cannot be used.
    """
    require_torch("recovery")
    pairs = stream_pairs(student, teacher)
    teacher = _in_vocabulary_of(student, teacher)
    if student.config.vocab_size != teacher.config.vocab_size:
        raise ConfigError(
            f"recover: the teacher has {teacher.config.vocab_size} tokens, the student "
            f"{student.config.vocab_size}"
        )
    from slimformer.train.loop import Run

    train, held_out = training_windows(
        teacher,
        texts,
        window=min(settings.window, student.config.max_positions),
        seed=settings.seed,
        threads=threads,
        progress=progress,
    )
    if texts is None:
        settings = dataclasses.replace(settings, labels=0.0)
    run = Run(student, teacher, settings, pairs, train, held_out, threads)
    return run.to_the_end(state, report)


def stream_pairs(student: Checkpoint, teacher: Checkpoint) -> list[tuple[int, int]]:
    """Layers after which both models' residual streams should agree, as (student's, teacher's).

    Where the student's next layer comes from a later one of the teacher's, its stream is to be what
    enters that one. The last is left out, because the predictions are compared there. Nothing is
    known of models that do not come from each other and are of different depth or width.
    """
    n_student, n_teacher = len(student.config.layers), len(teacher.config.layers)
    if student.config.n_channels != teacher.config.n_channels:
        return []
    recipe = _recipe_from(teacher, student)
    if recipe is not None:
        sources = [layer.source for layer in recipe.layers]
    elif n_student == n_teacher:
        sources = list(range(n_teacher))
    else:
        return []
    return [(index, after - 1) for index, after in enumerate(sources[1:])]


def _in_vocabulary_of(student: Checkpoint, teacher: Checkpoint) -> Checkpoint:
    """The teacher with the tokens that its student has kept of it."""
    recipe = _recipe_from(teacher, student)
    if recipe is None or recipe.vocabulary is None:
        return teacher
    whole = Recipe.identity(teacher)
    return apply(teacher, dataclasses.replace(whole, vocabulary=recipe.vocabulary))


def _recipe_from(teacher: Checkpoint, student: Checkpoint) -> Recipe | None:
    """The recipe that made the student of this teacher, if one did."""
    try:
        recipe = Recipe.from_dict(student.recipe or {})
    except RecipeError:
        return None
    return recipe if recipe.source_fingerprint == teacher.fingerprint else None
