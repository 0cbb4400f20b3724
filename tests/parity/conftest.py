"""Other engines as fixtures; everything in this folder carries the marker ``parity``."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reference.peers import open_in_transformers
from slimformer.checkpoint import Checkpoint
from slimformer.tokenizer import Tokenizer

FOLDER = Path(__file__).parent
WINDOW = 512
WINDOWS_PER_TEXT = 3


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the folder; what other packages warn about is theirs to settle."""
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker("parity")
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session")
def windows(real_model: Checkpoint) -> list[list[int]]:
    """Token windows of two shipped texts and one of random words, WINDOW tokens each."""
    assert real_model.tokenizer is not None
    tokenizer = Tokenizer(real_model.tokenizer)
    data = resources.files("slimformer") / "data"
    rng = np.random.default_rng(7)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    words = ("".join(rng.choice(letters, size=int(rng.integers(1, 9)))) for _ in range(1500))
    texts = [
        (data / "prose.txt").read_text(encoding="utf-8"),
        (data / "drama.txt").read_text(encoding="utf-8"),
        " ".join(words),
    ]
    cut = []
    for text in texts:
        tokens = tokenizer.encode(text, add_bos=False)
        starts = range(0, WINDOW * WINDOWS_PER_TEXT, WINDOW)
        cut += [tokens[start : start + WINDOW] for start in starts]
    assert all(len(window) == WINDOW for window in cut)
    return cut


@pytest.fixture(scope="session")
def transformers_model(real_model_path: Path) -> Any:
    """The real model as transformers reads it, by its own GGUF reader, in float32."""
    return open_in_transformers(real_model_path.parent, gguf_file=real_model_path.name)
