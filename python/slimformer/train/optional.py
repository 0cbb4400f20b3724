"""PyTorch is an extra: whoever needs it asks here first."""

from __future__ import annotations

import importlib.util

from slimformer.errors import MissingPackageError


def require_torch(purpose: str) -> None:
    """Raise MissingPackageError, which says what to install, unless PyTorch is there."""
    if importlib.util.find_spec("torch") is None:
        raise MissingPackageError(
            f"{purpose} needs PyTorch, which is not installed: pip install 'slimformer[train]'"
        )
