"""When a model is not merely worse, but broken."""

from __future__ import annotations

from collections.abc import Mapping

WORST_RATIO = 3.0
"""A perplexity beyond this many times the dense model's is a collapse."""

WORST_REPETITION = 0.5
"""A model collapses that writes more than this share of repeated phrases than the dense one."""

PHRASE_WORDS = 4


def repetition(text: str) -> float:
    """The share of phrases of four words that occurred before in the text."""
    words = text.split()
    phrases = [
        tuple(words[start : start + PHRASE_WORDS]) for start in range(len(words) - PHRASE_WORDS + 1)
    ]
    return 1 - len(set(phrases)) / len(phrases) if phrases else 0.0


def find_collapses(
    dense: Mapping[str, float],
    pruned: Mapping[str, float],
    dense_sample: str,
    pruned_sample: str,
) -> list[str]:
    """What of a pruned model is broken, in words; nothing where nothing is.

    Parameters
    ----------
    dense, pruned
        Perplexities by the name of their text.
    dense_sample, pruned_sample
        What both wrote after the same prompt. Small dense models repeat themselves too, so only
        what the pruned one adds to that counts.
    """
    found = []
    for name, perplexity in pruned.items():
        ratio = perplexity / dense[name]
        if not ratio <= WORST_RATIO:
            found.append(
                f"collapse: perplexity on {name} is {ratio:.1f} times that of the dense model"
            )
    added = repetition(pruned_sample) - repetition(dense_sample)
    if added > WORST_REPETITION:
        found.append(
            f"collapse: the pruned model repeats itself; {100 * repetition(pruned_sample):.0f} % "
            f"of the phrases that it writes are repeats"
        )
    return found
