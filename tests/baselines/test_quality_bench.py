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
    subprocess.run(
        [
            *(sys.executable, str(SCRIPT), "--model", str(tmp_path / "model")),
            *(*options, *methods, "--output", str(tmp_path / "out")),
        ],
        check=True,
        capture_output=True,
    )
    table = (tmp_path / "out" / "QUALITY.md").read_text(encoding="utf-8")
    for name in ("dense", "magnitude", "FLAP", "Slimformer", "Slimformer-depth"):
        assert f"| {name} |" in table
    assert (
        (tmp_path / "out" / "quality.svg").read_text(encoding="utf-8").rstrip().endswith("</svg>")
    )
