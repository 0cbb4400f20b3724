"""Replacing a folder as a whole: whatever happens, the old one is there or the new one.

The new folder is written beside its place under a hidden name, flushed to the disk, and
swapped in by one rename, on Linux an exchange with the old folder. Where the file system has
no exchange, the old folder steps aside under a hidden name first; a process killed in that
moment leaves it there, and ``recover`` puts it back. Leftovers of killed processes are told
from work in progress by a lock that dies with its process.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from slimformer.checkpoint.folder_lock import locked
from slimformer.errors import StorageError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextlib.contextmanager
def replace_folder(target: Path, check: Callable[[Path], None]) -> Iterator[Path]:
    """Give an empty folder to write; at the end it takes the place of ``target``.

    Parameters
    ----------
    target:
        The folder to make or replace. A link is followed. Missing parents are made.
    check:
        Called with the folder that is there already; raises when it must not be replaced.

    Raises
    ------
    StorageError
        Writing failed, for want of space or rights; ``target`` is as it was.
    """
    place = Path(os.path.realpath(target))
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with locked(place.parent):
            _recover(place)
            _remove_leftovers(place)
            check_place(place, check)
            staging = place.with_name(_staging_prefix(place) + secrets.token_hex(8))
            staging.mkdir()
            mark = os.open(staging, os.O_RDONLY)
            fcntl.flock(mark, fcntl.LOCK_EX)
        try:
            yield staging
            _flush(staging)
            with locked(place.parent):
                check_place(place, check)
                _swap(staging, place)
            _flush_folder(place.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            os.close(mark)
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"{target}: cannot write: {error}; nothing was changed") from error


def recover(target: Path) -> None:
    """Put back a folder whose replacement was killed between its two renames."""
    place = Path(os.path.realpath(target))
    if _aside(place).is_dir():
        try:
            with locked(place.parent):
                _recover(place)
        except OSError as error:
            raise StorageError(f"{target}: cannot restore {_aside(place)}: {error}") from error


def _staging_prefix(place: Path) -> str:
    return f".{place.name}.slimformer-new-"


def _aside(place: Path) -> Path:
    return place.with_name(f".{place.name}.slimformer-old")


def _recover(place: Path) -> None:
    aside = _aside(place)
    if not aside.is_dir():
        return
    if place.exists():
        shutil.rmtree(aside)
    else:
        aside.rename(place)


def _remove_leftovers(place: Path) -> None:
    """Remove what killed processes left; a folder in progress is locked by its process."""
    for folder in place.parent.iterdir():
        if not folder.name.startswith(_staging_prefix(place)) or not folder.is_dir():
            continue
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # its process has just removed it
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            shutil.rmtree(folder)
        finally:
            os.close(descriptor)


def check_place(place: Path, check: Callable[[Path], None]) -> None:
    """Refuse a file, and a folder that ``check`` refuses unless it is empty."""
    if not place.exists():
        return
    if not place.is_dir():
        raise StorageError(f"{place}: expected a folder or nothing, found a file")
    if any(place.iterdir()):
        check(place)


def _swap(staging: Path, place: Path) -> None:
    """Put ``staging`` in place of what is there, and remove that.

    From the rename on the new folder is what counts: what cannot be removed of the old one
    is left to the next save.
    """
    if not place.exists():
        staging.rename(place)
        return
    old = staging
    if not _exchange(staging, place):
        old = _aside(place)
        place.rename(old)
        staging.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one step; ``False`` where the system cannot."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return False
    status: int = function(
        _AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE
    )
    return status == 0


def _flush(folder: Path) -> None:
    for path in folder.iterdir():
        _flush_folder(path)
    _flush_folder(folder)


def _flush_folder(path: Path) -> None:
    """Have the system write a file, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
