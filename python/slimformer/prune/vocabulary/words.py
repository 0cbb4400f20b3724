"""What the words of a language need of a vocabulary.

A few megabytes of text hold a tenth of the words that other text will use. Lists of words and of
how often they are used, counted on billions, know the rest. What stands between words they do not
know, and it differs from one publisher to the next: quotation marks, dashes, brackets.
"""

from __future__ import annotations

import collections
import string
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from slimformer.errors import DataError
from slimformer.optional import require_package
from slimformer.tokenizer import Tokenizer

FORMS = ((" ", False, 0.75), (" ", True, 0.15), ("\n", True, 0.06), ("\n", False, 0.04))
"""How words stand in text: what is before one, whether it begins with a capital, how often so."""

MARKS = frozenset(string.punctuation) | {chr(code) for code in range(0x2010, 0x2028)}
"""What stands between words, but for spaces: of ASCII, and dashes, quotation marks and dots."""

MARKS_SHARE = 0.02
"""Share of text that is counted as marks of any kind. Most text has more, but the same few: this is
for the others. Spelt in pieces, a mark puzzles a model more than a word does: Gemma 3 with a third
of its vocabulary, most of its marks gone, took 12 % more bits for text that quotes ``like this'',
though only 1 token in 200 was such a mark; with them it takes 3 % more."""

FIRST_MARKS = 10
"""Marks at the start of a vocabulary are not more frequent."""


def spellings(tokenizer: Tokenizer, n_rows: int) -> list[str]:
    """What each token stands for, special ones too, [n_rows]."""
    return [tokenizer.decode([token], skip_special=False) for token in range(n_rows)]


def word_shares(
    tokenizer: Tokenizer, token_texts: Sequence[str], languages: Sequence[str]
) -> npt.NDArray[np.float64]:
    """The share of each token in text of some languages, by words and marks alone, [vocab_size].

    Parameters
    ----------
    tokenizer
        Whose tokens.
    token_texts
        Their ``spellings``.
    languages
        Codes, such as ``en``: those of wordfreq (Speer 2022, doi 10.5281/zenodo.7199437).

    Raises
    ------
    MissingPackageError
        wordfreq is not installed.
    DataError
        It has no list for a language.
    """
    require_package("wordfreq", "wordfreq", "counting a language's words", extra="words")
    from wordfreq import available_languages, get_frequency_dict

    known = available_languages()
    total = MARKS_SHARE * _mark_shares(token_texts)
    for language in languages:
        if language not in known:
            raise DataError(
                f"expected languages among {', '.join(sorted(known))}, found {language!r}"
            )
        of_language = _shares(tokenizer, len(token_texts), get_frequency_dict(language))
        total += (1 - MARKS_SHARE) / len(languages) * of_language
    return total


def _mark_shares(token_texts: Sequence[str]) -> npt.NDArray[np.float64]:
    """Of tokens that are marks, with or without spaces, by their order in the vocabulary."""
    spaceless = [text.strip(" ") for text in token_texts]
    shares = np.array([bool(text) and MARKS.issuperset(text) for text in spaceless], np.float64)
    shares[shares > 0] = 1 / (np.arange(np.count_nonzero(shares)) + FIRST_MARKS)
    return shares / (shares.sum() or 1.0)


def _shares(
    tokenizer: Tokenizer, n_rows: int, frequencies: dict[str, float]
) -> npt.NDArray[np.float64]:
    """Of one language, given how often each of its words is used."""
    alike = collections.defaultdict(list)  # words of a list share a few hundred frequencies
    for word, frequency in frequencies.items():
        alike[frequency].append(word)
    counts = np.zeros(n_rows)
    for before, capital, often in FORMS:
        for frequency, words in alike.items():
            shown = (word[:1].upper() + word[1:] if capital else word for word in words)
            ids = tokenizer.encode("".join(before + word for word in shown), add_bos=False)
            counts += often * frequency * np.bincount(ids, minlength=n_rows)[:n_rows]
    return np.asarray(counts / counts.sum())
