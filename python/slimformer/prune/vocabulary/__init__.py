"""The vocabulary: which tokens stay, and the tokenizer that knows those alone."""

from __future__ import annotations

from slimformer.prune.vocabulary.choice import cut_to_text
from slimformer.prune.vocabulary.description import Description

__all__ = ["Description", "cut_to_text"]
