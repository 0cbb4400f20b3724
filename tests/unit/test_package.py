"""What ``import slimformer`` gives."""

from __future__ import annotations

import subprocess
import sys

import pytest

import slimformer


@pytest.mark.parametrize("name", slimformer.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(slimformer, name) is not None
    assert name in dir(slimformer)


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="surprise"):
        slimformer.surprise  # noqa: B018


@pytest.mark.parametrize("first", ["slimformer.prune", "slimformer.prune.recipe", "slimformer"])
def test_prune_is_the_function_whatever_was_imported_before(first: str) -> None:
    script = f"import {first}, slimformer; assert callable(slimformer.prune)"
    subprocess.run([sys.executable, "-c", script], check=True)
