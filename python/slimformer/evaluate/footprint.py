"""Load time and peak memory of a model, taken in a process that does nothing else."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from slimformer.errors import SlimformerError

if TYPE_CHECKING:
    from slimformer.engine import Engine

PROMPT_TOKENS = 8
"""Tokens that a freshly loaded model runs."""

POLL_SECONDS = 0.002
"""How often the child's memory is read: a tensor takes longer than this to convert."""


@dataclasses.dataclass(frozen=True)
class Footprint:
    """What it takes to load a model.

    ``load_s`` is the time from the file to an engine that is ready; ``first_token_s`` adds the
    first forward pass, whose logits have the digest ``logits_sha256``. ``peak_memory_bytes`` is
    the largest resident memory of the process on the way, the interpreter included and file
    pages excluded; where the operating system does not tell them apart, file pages are counted
    too.
    """

    load_s: float
    first_token_s: float
    peak_memory_bytes: int
    logits_sha256: str


def measure_footprint(
    model: str | os.PathLike[str], *, weights: str = "bf16", threads: int = 0
) -> Footprint:
    """Load a model in a process of its own and watch its memory.

    Raises
    ------
    SlimformerError
        The process failed; the message is its own.
    """
    command = [sys.executable, "-m", "slimformer.evaluate.load_once"]
    with subprocess.Popen(
        [*command, os.fspath(model), weights, str(threads)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        peak = 0
        try:
            while process.poll() is None:
                peak = max(peak, anonymous_bytes(process.pid))
                time.sleep(POLL_SECONDS)
        except BaseException:
            process.kill()
            raise
        output, errors = process.communicate()
    if process.returncode != 0:
        last_line = errors.strip().rpartition("\n")[2]
        raise SlimformerError(last_line or f"{model}: loading ended with {process.returncode}")
    figures = json.loads(output)
    return Footprint(
        load_s=figures["load_s"],
        first_token_s=figures["first_token_s"],
        peak_memory_bytes=peak or figures["max_rss_bytes"],
        logits_sha256=figures["logits_sha256"],
    )


def logits_digest(engine: Engine) -> str:
    """SHA-256 of the logits after a few tokens: equal for models that are the same bit for bit."""
    tokens = [index % engine.config.vocab_size for index in range(PROMPT_TOKENS)]
    logits = engine.session(capacity=PROMPT_TOKENS).extend(tokens)
    return hashlib.sha256(logits.tobytes()).hexdigest()


def anonymous_bytes(pid: int) -> int:
    """Resident memory of a process that no file backs; 0 where the system does not say."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    match = re.search(r"^RssAnon:\s+(\d+) kB", status, flags=re.MULTILINE)
    return int(match.group(1)) * 1024 if match else 0
