"""Kills a save at every step: a script, since the kill must be a real one.

``python -m reference.killed_saves SOURCE OLD TARGET exchange|renames`` saves the model SOURCE
over a copy of OLD at TARGET again and again, each time in a forked process that kills itself
one file operation later, and checks what it leaves. It prints how often the old model and the
new one were found.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from slimformer.checkpoint import Checkpoint, load, replace_folder, save

STEPS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "fcntl.flock")


def same(first: Checkpoint, second: Checkpoint) -> bool:
    """Whether two models are equal in shape, tokenizer and every bit of their tensors."""
    return (
        first.config == second.config
        and first.tokenizer == second.tokenizer
        and all(first.read(name).tobytes() == second.read(name).tobytes() for name in first.tensors)
    )


def killed_save(source: Checkpoint, target: Path, survived_steps: int) -> bool:
    """Save in a process that dies after so many steps; whether it came to the end."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == 0
    left = survived_steps

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in STEPS:
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)
    save(source, target)
    os._exit(0)


def main(source_path: str, old_path: str, target_path: str, way: str) -> None:
    """Run every kill and print what was found."""
    source, old, target = load(source_path), load(old_path), Path(target_path)
    if way == "renames":
        replace_folder._exchange = lambda first, second: False
    old_found = new_found = steps = 0
    finished = False
    while not finished:
        shutil.rmtree(target.parent, ignore_errors=True)
        shutil.copytree(old_path, target)
        finished = killed_save(source, target, steps)
        found = load(target)
        old_found += same(found, old)
        new_found += same(found, source)
        steps += 1
        if old_found + new_found != steps:
            raise SystemExit(f"neither model after {steps} steps")
        save(old, target)
        if [path.name for path in target.parent.iterdir()] != ["model"]:
            raise SystemExit(f"leftovers after {steps} steps: {list(target.parent.iterdir())}")
    sys.stdout.write(f"{old_found} {new_found}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
