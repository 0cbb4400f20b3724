"""Slimformer: remove whole structures from a Transformer, then really run it faster.

>>> import slimformer as sf
>>> dense = sf.load("smollm2-135m-instruct")
>>> slim = sf.prune(dense, sf.plan(dense, keep=0.8))
>>> slim.save("smol-80")
>>> print(sf.Engine(slim).generate("The capital of France is"))

Names are loaded when they are first used, so that ``slimformer --help`` does not wait for
tokenizers and the core.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

from slimformer.errors import (
    BudgetError,
    ConfigError,
    ContextLengthError,
    DataError,
    DownloadError,
    FormatError,
    MissingPackageError,
    ModelNotFoundError,
    RecipeError,
    SlimformerError,
    StorageError,
    TokenError,
    UnsupportedModelError,
    VerificationError,
)

if TYPE_CHECKING:
    from slimformer.checkpoint import Checkpoint, load, pull
    from slimformer.engine import Engine, Mask, Session, build_info
    from slimformer.export import export
    from slimformer.packing import pack
    from slimformer.prune import Recipe, balance, nest, plan, prune, prune_nested
    from slimformer.train import from_torch, recover, to_torch

__version__ = "0.1.0"

__all__ = [
    "BudgetError",
    "Checkpoint",
    "ConfigError",
    "ContextLengthError",
    "DataError",
    "DownloadError",
    "Engine",
    "FormatError",
    "Mask",
    "MissingPackageError",
    "ModelNotFoundError",
    "Recipe",
    "RecipeError",
    "Session",
    "SlimformerError",
    "StorageError",
    "TokenError",
    "UnsupportedModelError",
    "VerificationError",
    "__version__",
    "balance",
    "build_info",
    "export",
    "from_torch",
    "load",
    "nest",
    "pack",
    "plan",
    "prune",
    "prune_nested",
    "pull",
    "recover",
    "to_torch",
]

_HOME = {
    "Checkpoint": "slimformer.checkpoint",
    "load": "slimformer.checkpoint",
    "pull": "slimformer.checkpoint",
    "Engine": "slimformer.engine",
    "Mask": "slimformer.engine",
    "Session": "slimformer.engine",
    "build_info": "slimformer.engine",
    "export": "slimformer.export",
    "pack": "slimformer.packing",
    "Recipe": "slimformer.prune",
    "balance": "slimformer.prune",
    "nest": "slimformer.prune",
    "plan": "slimformer.prune",
    "prune": "slimformer.prune",
    "prune_nested": "slimformer.prune",
    "from_torch": "slimformer.train",
    "recover": "slimformer.train",
    "to_torch": "slimformer.train",
}
"""Where the names live that are loaded on first use."""


class _Package(types.ModuleType):
    """Keeps ``prune`` and ``export`` the functions although subpackages have those names too.

    The import system binds a subpackage to its parent as soon as anyone imports it; without
    this, what ``slimformer.prune`` is would depend on what has been imported before.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in ("prune", "export") and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
