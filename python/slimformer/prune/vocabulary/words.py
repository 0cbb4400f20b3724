"""What the words of a language need of a vocabulary.

A few megabytes of text hold a tenth of the words that other text will use. Lists of words and of
how often they are used, counted on billions, know the rest.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from slimformer.errors import DataError
from slimformer.optional import require_package
from slimformer.tokenizer import Tokenizer

FORMS = ((" ", False, 0.75), (" ", True, 0.15), ("\n", True, 0.06), ("\n", False, 0.04))
"""How words stand in text: what is before one, whether it begins with a capital, how often so."""


def word_shares(
    tokenizer: Tokenizer, n_rows: int, languages: Sequence[str]
) -> npt.NDArray[np.float64]:
    """The share of each token in text of some languages, by their words alone, [n_rows].

    Parameters
    ----------
    tokenizer
        Whose tokens.
    n_rows
        Rows of the embedding.
    languages
        Their codes, such as ``en``: those of wordfreq (Speer 2022, doi 10.5281/zenodo.7199437).

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
    total = np.zeros(n_rows)
    for language in languages:
        if language not in known:
            raise DataError(
                f"expected languages among {', '.join(sorted(known))}, found {language!r}"
            )
        of_language = _shares(tokenizer, n_rows, get_frequency_dict(language))
        total += of_language / len(languages)
    return total


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
