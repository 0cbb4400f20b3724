"""PyTorch is an extra: whoever needs it asks here first."""

from __future__ import annotations

from slimformer.optional import require_package


def require_torch(purpose: str) -> None:
    """Raise MissingPackageError, which says what to install, unless PyTorch is there."""
    require_package("torch", "PyTorch", purpose, extra="train")
