"""Everything in this folder needs PyTorch, so it carries the marker ``parity``."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the folder."""
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker("parity")
