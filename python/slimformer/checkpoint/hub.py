"""Models from the Hugging Face hub, through its own library and cache."""

from __future__ import annotations

import re
from pathlib import Path

from slimformer.checkpoint.folder import CONFIG, require_family
from slimformer.errors import DownloadError, ModelNotFoundError

PREFIX = "hf:"

_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")

_SETTINGS = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "recipe.json",
]
_WEIGHTS = [
    "model.safetensors",
    "model.sparse.safetensors",
    "model.safetensors.index.json",
    "model-*.safetensors",
]


def fetch(name: str) -> Path:
    """The folder of ``hf:org/name`` or ``hf:org/name@revision`` in the library's cache.

    The settings come first, so that a family that does not run here is refused before its
    weights are fetched. Without a network the cached copy is used.

    Raises
    ------
    ModelNotFoundError
        The name is not of that form, or the hub has no such model.
    UnsupportedModelError
        The model's family does not run here.
    DownloadError
        The hub cannot be reached, or refuses.
    """
    match = _NAME.fullmatch(name.removeprefix(PREFIX))
    if match is None:
        raise ModelNotFoundError(f"{name}: expected {PREFIX}org/name or {PREFIX}org/name@revision")
    repo, revision = match["repo"], match["revision"]
    folder = _snapshot(name, repo, revision, _SETTINGS)
    if not (folder / CONFIG).exists():
        raise ModelNotFoundError(f"{name}: this repository has no {CONFIG}")
    require_family(folder)
    return _snapshot(name, repo, revision, _SETTINGS + _WEIGHTS)


def _snapshot(name: str, repo: str, revision: str | None, files: list[str]) -> Path:
    # Half a second to import, and most models are local.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=files))
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ModelNotFoundError(f"{name}: not on the hub, or not open to you: {error}") from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise DownloadError(
            f"{name}: cannot fetch from the hub: {error}; check the network, or copy the model's "
            "folder here by other means and give its path"
        ) from error
