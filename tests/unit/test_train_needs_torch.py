"""Without PyTorch everything else works, and what needs it says what to install."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

import slimformer
from prune.test_allocate import uniform_model
from slimformer.errors import MissingPackageError
from slimformer.train import Settings


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else find(name)
    )


@pytest.mark.usefixtures("without_torch")
def test_what_needs_torch_says_what_to_install() -> None:
    model = uniform_model(layers=1)
    for call in (
        lambda: slimformer.to_torch(model),
        lambda: slimformer.from_torch(None, model),
        lambda: slimformer.recover(model, model, Settings(tokens=1)),
    ):
        with pytest.raises(MissingPackageError, match=r"slimformer\[train\]") as caught:
            call()
        assert isinstance(caught.value, ImportError)


def test_torch_is_not_loaded_unasked() -> None:
    script = "import sys, slimformer.train; slimformer.recover; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
