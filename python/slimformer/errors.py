"""The errors that Slimformer raises, each also the natural builtin.

A message says where (file, layer, tensor), what was expected, what was found
and, where there is one, what to do.
"""

from __future__ import annotations


class SlimformerError(Exception):
    """Base of every error that Slimformer raises on purpose."""


class ConfigError(SlimformerError, ValueError):
    """A model description or a setting contradicts itself."""


class FormatError(SlimformerError, ValueError):
    """A model file is truncated, hostile, incomplete or contradicts itself."""


class UnsupportedModelError(SlimformerError, ValueError):
    """A model file is well formed, but asks for something that does not run here."""


class ModelNotFoundError(SlimformerError, FileNotFoundError):
    """No model under that name or path."""


class StorageError(SlimformerError, OSError):
    """Reading or writing a file failed; what was there before is still there."""


class DownloadError(SlimformerError, OSError):
    """A packaged model could not be fetched or did not match its checksum."""


class RecipeError(SlimformerError, ValueError):
    """A recipe is malformed or belongs to another model."""


class BudgetError(SlimformerError, ValueError):
    """No choice of the allowed structures meets the budget."""


class DataError(SlimformerError, ValueError):
    """Text, a task file or token ids that cannot be used."""


class TokenError(SlimformerError, IndexError):
    """A token id outside the vocabulary."""


class ContextLengthError(SlimformerError, ValueError):
    """A sequence longer than the model's, or the session's, limit."""


class MissingPackageError(SlimformerError, ImportError):
    """An optional package that this needs is not installed; the message says how to get it."""


class VerificationError(SlimformerError, RuntimeError):
    """Another engine does not say of an exported model what this one says of its source."""
