"""The rules of the code (ARCHITECTURE.md) as tests: who may know whom, and what nobody does."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import slimformer

ROOT = Path(__file__).resolve().parents[1]
CPP = ROOT / "cpp"
PACKAGE = ROOT / "python" / "slimformer"

CPP_LAYERS = ("base", "kernels", "tensor", "ops", "model", "bindings")
"""Lowest first: a layer includes itself and what is below it."""

PYTHON_LEVELS = {
    "errors": 0,
    "progress": 0,
    "arrays": 1,
    "optional": 1,
    "checks": 1,
    "rope": 1,
    "ffn": 1,
    "config": 1,
    "config_settings": 1,
    "checkpoint": 2,
    "tokenizer": 2,
    "chat_template": 2,
    "token_bytes": 2,
    "encoding": 2,
    "mask": 1,
    "engine": 3,
    "generation": 3,
    "packing": 3,
    "stopwatch": 3,
    "prune": 4,
    "train": 5,
    "export": 5,
    "baselines": 6,
    "evaluate": 5,
    "report": 6,
    "demo": 7,
    "cli": 8,
    "__main__": 8,
}
"""A module imports from its own level or below."""

CORE_IMPORTER = "engine"
"""The only package that may import the compiled core."""

WITHOUT_ENGINE = (
    *("recipe", "structures", "surgery", "refit", "sparsify"),
    *("zeros.pattern", "zeros.sparsegpt", "zeros.survivors", "zeros.problem", "zeros.choice"),
    *("vocabulary.description", "channels.rotation"),
)
"""Modules of prune/ that are arithmetic on tensors: the engine must not be reachable."""

FOLDERS = (".ci", "bench", "cpp", "python", "tests")

MAX_LINES = 450


def _sources(*suffixes: str, under: Path = ROOT) -> list[Path]:
    """Every source file of the project below ``under`` with one of the suffixes, or with any."""
    top = [path for path in ROOT.iterdir() if path.is_file()]
    nested = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    return sorted(
        path
        for path in top + nested
        if path.is_relative_to(under)
        and "__pycache__" not in path.parts
        and path.suffix != ".so"
        and (not suffixes or path.suffix in suffixes)
    )


def _code(path: Path) -> str:
    """C++ without comments and string literals, line numbers kept."""
    pattern = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.DOTALL)
    return pattern.sub(lambda match: "\n" * match[0].count("\n"), path.read_text())


def _offences(paths: list[Path], pattern: str, *, code_only: bool) -> list[str]:
    found = []
    for path in paths:
        text = _code(path) if code_only else path.read_text(encoding="utf-8")
        for number, line in enumerate(text.splitlines(), 1):
            if re.search(pattern, line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    return found


def test_cpp_layers_include_only_downwards() -> None:
    wrong = []
    for path in _sources(".h", ".cc", under=CPP):
        own = path.relative_to(CPP).parts[0]
        for target in re.findall(r'^\s*#include "([^"]+)"', path.read_text(), re.MULTILINE):
            layer = target.split("/")[0]
            if layer not in CPP_LAYERS:
                wrong.append(f"{path.relative_to(CPP)} includes {target}: not a path below cpp/")
            elif CPP_LAYERS.index(layer) > CPP_LAYERS.index(own):
                wrong.append(f"{path.relative_to(CPP)} includes {target}")
    assert wrong == []


def test_pybind11_stays_in_the_bindings() -> None:
    paths = [path for path in _sources(".h", ".cc", under=CPP) if "bindings" not in path.parts]
    assert _offences(paths, r"pybind11|Python\.h", code_only=False) == []


def test_core_never_aborts_or_prints() -> None:
    forbidden = (
        r"\b(abort|_?exit|quick_exit|terminate|f?printf|puts|f?putc|assert)\s*\("
        r"|std::c(out|err|log)\b"
    )
    assert _offences(_sources(".h", ".cc", under=CPP), forbidden, code_only=True) == []


def test_nothing_is_sized_from_layer_zero() -> None:
    first_layer = r"layers_?(\(\))?(\[0\]|\.(front|at)\(0?\))|next\(iter\([\w.]*layers\)\)"
    paths = _sources(".h", ".cc", under=CPP) + _sources(".py", under=PACKAGE)
    assert _offences(paths, first_layer, code_only=False) == []


def _imports(path: Path) -> Iterator[str]:
    """Names of this package that a file imports or reaches through it, below the package."""
    package = path.relative_to(PACKAGE.parent).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*origin, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names = [f"{node.value.id}.{node.attr}"]
        else:
            continue
        for name in names:
            if name.startswith("slimformer."):
                yield name.removeprefix("slimformer.")


def _module_of(path: Path) -> str:
    """The dotted name of a file below the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_python_imports_only_downwards() -> None:
    wrong = []
    for path in _sources(".py", under=PACKAGE):
        module = _module_of(path)
        if not module:
            continue
        own = module.split(".")[0]
        assert own in PYTHON_LEVELS, f"{own} has no level"
        for name in _imports(path):
            target = name.split(".")[0]
            if target == "__version__" or (target == "_core" and own == CORE_IMPORTER):
                continue
            if PYTHON_LEVELS.get(target, sys.maxsize) > PYTHON_LEVELS[own]:
                wrong.append(f"{module} imports {name}")
    assert wrong == []


@pytest.mark.parametrize("name", WITHOUT_ENGINE)
def test_surgery_and_its_kin_do_not_reach_the_engine(name: str) -> None:
    graph = {_module_of(path): set(_imports(path)) for path in _sources(".py", under=PACKAGE)}
    seen: set[str] = set()
    waiting = [f"prune.{name}"]
    while waiting:
        module = waiting.pop()
        if module in seen or module not in graph:
            continue
        seen.add(module)
        for target in graph[module]:
            # "prune.recipe.Recipe" is a name inside the module "prune.recipe".
            waiting.extend((target, target.rpartition(".")[0]))
    assert f"prune.{name}" in seen
    assert not {module for module in seen if module.split(".")[0] in ("engine", "_core")}


def test_versions_agree() -> None:
    declared = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert declared is not None
    assert slimformer.__version__ == declared[1]
    assert importlib.import_module("slimformer._core").__version__ == declared[1]
    assert importlib.metadata.version("slimformer") == declared[1]


def test_stubs_say_what_the_modules_are(tmp_path: Path) -> None:
    modules = ["slimformer._core", "slimformer._kernels"]
    # Every class of pybind11 has a metaclass that no stub can name.
    bound = [
        f"{name}.{member}\n"
        for name in modules
        for member, value in vars(importlib.import_module(name)).items()
        if isinstance(value, type) and type(value).__name__ == "pybind11_type"
    ]
    allowlist = tmp_path / "allowlist"
    allowlist.write_text("".join(bound))
    checked = subprocess.run(
        [
            *(sys.executable, "-m", "mypy.stubtest", *modules),
            *("--allowlist", str(allowlist), "--ignore-unused-allowlist"),
            *("--mypy-config-file", str(ROOT / "pyproject.toml")),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def _tier_objects() -> list[Path]:
    """Objects of the kernel tiers in every build folder without sanitizers."""
    objects = (path for path in (ROOT / "build").glob("**/*.o") if "asan" not in path.parts)
    tier = re.compile(r"slimformer_(scalar|avx\w+)\.dir")
    return sorted(path for path in objects if any(tier.fullmatch(part) for part in path.parts))


def test_tier_objects_export_one_symbol() -> None:
    """A weak symbol compiled for a high tier could be the one that the linker keeps for all."""
    objects = _tier_objects()
    if not objects or shutil.which("nm") is None:
        pytest.skip("no build folder here, or no nm")
    for path in objects:
        table = subprocess.run(
            ["nm", "--defined-only", "--extern-only", str(path)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        symbols = [line.split()[-2:] for line in table.splitlines()]
        assert len(symbols) == 1, f"{path.relative_to(ROOT)} exports {symbols}"
        assert symbols[0][0] in "TRD", f"{path.relative_to(ROOT)}: {symbols[0]} is weak"


def test_files_are_short_enough_to_read() -> None:
    paths = _sources(".h", ".cc", ".py", ".pyi", ".md", ".cmake")
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    assert {
        str(path.relative_to(ROOT)): length
        for path, length in lengths.items()
        if length > MAX_LINES
    } == {}


def test_nothing_is_left_undone() -> None:
    paths = [
        path for path in _sources(".h", ".cc", ".py", ".pyi", ".cmake") if path != Path(__file__)
    ]
    assert _offences(paths, r"\b(TODO|FIXME|XXX|HACK)\b", code_only=False) == []


def test_no_file_names_a_machine_or_an_index() -> None:
    private = r"(?<![\w./])/(home|root|work|opt|tmp|Users|mnt)/|pythonhosted|pypi\.org|index-url"
    paths = [path for path in _sources() if path not in (Path(__file__), ROOT / "LICENSE")]
    text = [path for path in paths if b"\0" not in path.read_bytes()]
    assert _offences(text, private, code_only=False) == []


def test_ci_runs_the_command_that_the_readme_gives() -> None:
    commands = re.findall(r"^(python3 -m venv .*pytest.*)$", (ROOT / "README.md").read_text(), re.M)
    assert len(commands) == 1
    assert commands[0] in (ROOT / ".ci" / "run").read_text()
