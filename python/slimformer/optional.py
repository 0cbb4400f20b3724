"""Packages that are extras: whoever needs one asks here first."""

from __future__ import annotations

import importlib.util

from slimformer.errors import MissingPackageError


def require_package(module: str, name: str, purpose: str, *, extra: str) -> None:
    """Raise MissingPackageError, which says what to install, unless a package is there."""
    if importlib.util.find_spec(module) is None:
        raise MissingPackageError(
            f"{purpose} needs {name}, which is not installed: pip install 'slimformer[{extra}]'"
        )
