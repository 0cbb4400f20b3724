from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from prune.test_allocate import uniform_model

SCRIPT = Path(__file__).parents[2] / "bench" / "quality.py"


def test_one_command_gives_a_table_and_a_plot(tmp_path: Path) -> None:
    uniform_model(layers=3, neurons=96).save(tmp_path / "model")
    options = ("--keep", "0.8", "--tokens", "1024", "--windows", "1", "--rounds", "0")
    methods = ("--methods", "magnitude", "FLAP", "Slimformer", "Slimformer-depth")

    def table() -> str:
        subprocess.run(
            [
                *(sys.executable, str(SCRIPT), "--model", str(tmp_path / "model")),
                *(*options, *methods, "--output", str(tmp_path / "out")),
                *("--work", str(tmp_path / "work")),
            ],
            check=True,
            capture_output=True,
        )
        return (tmp_path / "out" / "QUALITY.md").read_text(encoding="utf-8")

    first = table()
    for name in ("dense", "magnitude", "FLAP", "Slimformer", "Slimformer-depth"):
        assert f"| {name} |" in first
    assert (
        (tmp_path / "out" / "quality.svg").read_text(encoding="utf-8").rstrip().endswith("</svg>")
    )
    made = (tmp_path / "work" / "FLAP-0.8" / "model.safetensors").stat().st_mtime_ns
    assert table() == first  # the same seconds among it: nothing was made again
    assert (tmp_path / "work" / "FLAP-0.8" / "model.safetensors").stat().st_mtime_ns == made
