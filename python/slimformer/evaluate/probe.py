"""What a model writes: perplexity and multiple choice can look fine when this no longer does."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from slimformer.errors import ConfigError
from slimformer.evaluate.collapse import repetition
from slimformer.progress import Progress, silent

if TYPE_CHECKING:
    from slimformer.engine import Engine

PROMPTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "The lighthouse keeper climbed the stairs every evening. One night",
    "To bake a simple loaf of bread, you need",
    "The three primary colours are",
    "In 1969, two astronauts",
    "Question: What do bees make? Answer:",
    "A list of animals that live in the sea: whales,",
    "Dear Sir or Madam, I am writing to",
    "The main difference between a cat and a dog is",
    "def add(a, b):\n    return",
    "Once upon a time, in a small village,",
)

LONGEST_PHRASE = 3


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """What a model wrote after each prompt, greedily, and how varied it is.

    ``repetition`` is the mean share of phrases of four words that occurred before in the same
    answer. ``distinct`` holds, for phrases of 1, 2 and 3 words, the share of different ones among
    those of all answers (Li et al. 2016, arXiv 1510.03055).
    """

    answers: tuple[str, ...]
    repetition: float
    distinct: tuple[float, ...]


def probe_generation(
    engine: Engine,
    *,
    prompts: Sequence[str] = PROMPTS,
    max_tokens: int = 48,
    progress: Progress = silent,
) -> ProbeResult:
    """Let a model go on from some prompts.

    Raises
    ------
    ConfigError
        No prompts.
    DataError
        The model has no tokenizer.
    """
    if not prompts:
        raise ConfigError("probe: expected prompts, found none")
    answers = []
    for done, prompt in enumerate(prompts):
        progress("answer prompts", done, len(prompts))
        answers.append(engine.generate(prompt, max_tokens=max_tokens))
    progress("answer prompts", len(prompts), len(prompts))
    return ProbeResult(
        answers=tuple(answers),
        repetition=sum(map(repetition, answers)) / len(answers),
        distinct=tuple(_distinct(answers, size) for size in range(1, LONGEST_PHRASE + 1)),
    )


def _distinct(answers: Sequence[str], size: int) -> float:
    """The share of different phrases of ``size`` words; 0 where there are none."""
    phrases = [
        tuple(words[start : start + size])
        for words in map(str.split, answers)
        for start in range(len(words) - size + 1)
    ]
    return len(set(phrases)) / len(phrases) if phrases else 0.0
