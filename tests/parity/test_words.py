from __future__ import annotations

import pytest

from reference.vocabularies import KINDS
from slimformer.errors import DataError
from slimformer.prune.vocabulary.words import spellings, word_shares
from slimformer.tokenizer import Tokenizer


def test_words_come_from_the_lists_of_wordfreq() -> None:
    tokenizer = Tokenizer(KINDS["byte_level"]())
    texts = spellings(tokenizer, tokenizer.vocab_size)
    shares = word_shares(tokenizer, texts, ["en"])
    assert shares.sum() == pytest.approx(1)
    ids = tokenizer.encode(" the", add_bos=False)
    assert shares[ids].min() > 0.003
    with pytest.raises(DataError, match="found 'tlh'"):
        word_shares(tokenizer, texts, ["tlh"])
