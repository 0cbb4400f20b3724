"""What every test shares: repeatable random cases, and the real model for those that ask."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from slimformer.checkpoint import Checkpoint

REAL_MODEL = "smollm2-135m-instruct"

# The same cases on every machine and in every run: a failure is a failure for everyone.
settings.register_profile(
    "repeatable", derandomize=True, deadline=None, database=None, max_examples=40
)
settings.load_profile("repeatable")

# A shell lets its jobs in the background ignore Ctrl-C, and so would the programs that tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark whatever uses the real model, so that no such test runs unasked."""
    for item in items:
        if "real_model_path" in getattr(item, "fixturenames", ()):
            item.add_marker("model")


@pytest.fixture(scope="session")
def real_model_path() -> Path:
    """The real model's GGUF in the user's cache, pulled if it is not there."""
    from slimformer.checkpoint import pull

    return pull(REAL_MODEL)


@pytest.fixture(scope="session")
def real_model(real_model_path: Path) -> Checkpoint:
    """The real model, tensors read when asked for."""
    from slimformer.checkpoint import load

    return load(real_model_path)
