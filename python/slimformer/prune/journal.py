"""What long work has finished so far, on disk, so that it can go on after an interruption."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from slimformer.checkpoint.checkpoint import Tensor
from slimformer.checkpoint.safetensors_files import open_file, write_file
from slimformer.errors import SlimformerError, StorageError

Arrays = Mapping[str, npt.NDArray[Any]]

RECORD_SECONDS = 20.0
"""Seconds of work that an interruption may cost beside the step that it hits: with much text,
writing down the streams after every layer of a small model would take longer than the layer."""

_KEY = "key.json"
_RESULT = "result"
_SUFFIX = ".safetensors"


class Journal:
    """Steps of one piece of work: what each has found, and where the work stands after it.

    The folder belongs to work with exactly one key; what it holds of other work is removed. A
    step counts once its standing is written, which happens in one rename.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        """Open the folder; it is made when there is something to keep.

        Parameters
        ----------
        folder
            Of this work alone.
        key
            What its results depend on, in JSON's terms.
        """
        self.folder = folder
        self._key = json.dumps(key, sort_keys=True)
        if self._text(_KEY) != self._key:
            shutil.rmtree(folder, ignore_errors=True)
        self._pending: dict[str, npt.NDArray[Any]] = {}
        self._recorded_at = time.monotonic()

    def record(self, step: int, found: Arrays, standing: Arrays) -> dict[str, Tensor]:
        """Keep what a step has found and where the work stands after it.

        Not every step is written at once: some wait in memory for a later one.

        Returns
        -------
        What was written, of this step and of those that waited, to be read from the disk again
        when it is needed.

        Raises
        ------
        StorageError
            The folder cannot be made or written.
        """
        self._pending.update(found)
        if time.monotonic() - self._recorded_at < RECORD_SECONDS:
            return {}
        for path, arrays in (
            (self._path("found", step), self._pending),
            (self._path("standing", step), standing),
        ):
            tensors = {name: Tensor.of(array) for name, array in arrays.items()}
            self._write(path, functools.partial(write_file, tensors=tensors))
        self._pending = {}
        for old in self._steps("standing")[:-1]:
            self._path("standing", old).unlink(missing_ok=True)
        self._recorded_at = time.monotonic()
        return open_file(self._path("found", step))

    def resume(self) -> tuple[int, dict[str, Tensor], dict[str, Tensor]] | None:
        """The last recorded step, all that was found up to it, and where the work stands.

        ``None`` where nothing, or nothing readable, is there.
        """
        last = max(self._steps("standing"), default=None)
        if last is None:
            return None
        found: dict[str, Tensor] = {}
        try:
            for step in self._steps("found"):
                if step <= last:
                    found.update(open_file(self._path("found", step)))
            return last, found, open_file(self._path("standing", last))
        except SlimformerError:
            return None

    def finish(self, result: str) -> None:
        """Keep the result of all the work."""
        self._write_text(_RESULT, result)

    def finished(self) -> str | None:
        """The result, where all the work is done."""
        return self._text(_RESULT)

    def _path(self, kind: str, step: int) -> Path:
        return self.folder / f"{kind}-{step}{_SUFFIX}"

    def _steps(self, kind: str) -> list[int]:
        """Ascending steps that there are files of."""
        paths = self.folder.glob(f"{kind}-*{_SUFFIX}")
        return sorted(int(path.stem.removeprefix(f"{kind}-")) for path in paths)

    def _text(self, name: str) -> str | None:
        try:
            return (self.folder / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return None

    def _write_text(self, name: str, text: str) -> None:
        self._write(self.folder / name, lambda path: path.write_text(text, encoding="utf-8"))

    def _write(self, path: Path, write: Callable[[Path], object]) -> None:
        """Write a file under another name, then rename it."""
        try:
            if not self.folder.exists():
                self.folder.mkdir(parents=True)
                self._write_text(_KEY, self._key)
            unfinished = path.with_suffix(".part")
            write(unfinished)
            unfinished.replace(path)
        except OSError as error:
            raise StorageError(
                f"{self.folder}: cannot keep unfinished work: {error.strerror or error}"
            ) from error


def digest(texts: Sequence[str] | None) -> str | None:
    """SHA-256 of texts; ``None`` of none."""
    if texts is None:
        return None
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()
