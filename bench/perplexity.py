"""What each weight type costs in perplexity, beside llama.cpp's types made from the same weights.

The text is cut into windows of 2,048 tokens that do not overlap; every token of a window but the
first is scored. Ratios are to float32 on the same engine, so that only the weights differ.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

from reference.peers import (
    llama_cpp_logits,
    open_in_llama_cpp,
    perplexity,
    target_log_probs,
    write_gguf,
)
from slimformer.checkpoint import Checkpoint, load, pull
from slimformer.engine import Engine, Weights
from slimformer.evaluate import read_text
from slimformer.prune import balance

MODEL = "smollm2-135m-instruct"
WINDOW = 2048
LLAMA_TYPES = ("Q8_0", "Q4_0", "Q4_K_M")


def main() -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("--windows", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    path = pull(MODEL)
    checkpoint = load(path)
    windows = cut(checkpoint, read_text(options.text), options.windows)
    print(f"| {MODEL}, {len(windows)} windows of {options.text.name} | perplexity | more |")
    print("|---|---:|---:|")
    for results in (
        our_own(checkpoint, windows, options.threads),
        of_llama_cpp(checkpoint, path, windows, options.threads),
    ):
        exact = None
        for name, found, _ in results:
            exact = exact or found
            print(f"| {name} | {found:.3f} | {found / exact - 1:+.2%} |", flush=True)
    return 0


def cut(checkpoint: Checkpoint, text: str, limit: int) -> list[list[int]]:
    """Whole windows of the text, at most ``limit``."""
    tokenizer = Engine(checkpoint).tokenizer
    assert tokenizer is not None
    ids = tokenizer.encode(text)
    starts = range(0, len(ids) - WINDOW + 1, WINDOW)
    return [ids[start : start + WINDOW] for start in starts[:limit]]


def our_own(
    checkpoint: Checkpoint, windows: Sequence[list[int]], threads: int
) -> Iterator[tuple[str, float, int]]:
    """Perplexity with every weight type, and the bytes of the weights."""

    def scored(name: str, model: Checkpoint, weights: Weights) -> tuple[str, float, int]:
        engine = Engine(model, weights=weights, threads=threads)
        return f"slimformer {name}", perplexity(engine.score(windows)), engine.weight_bytes

    for weights in get_args(Weights):
        yield scored(weights, checkpoint, weights)
        if weights == "int8":
            yield scored(
                "int8, balanced as pack does", balance(checkpoint, threads=threads), "int8"
            )


def of_llama_cpp(
    checkpoint: Checkpoint,
    tokenizer: Path,
    windows: Sequence[list[int]],
    threads: int,
    types: Sequence[str] = LLAMA_TYPES,
) -> Iterator[tuple[str, float, int]]:
    """Perplexity of what llama.cpp makes of the float32 weights, and the bytes of the file."""
    import llama_cpp

    with tempfile.TemporaryDirectory() as folder:
        exact = Path(folder, "F32.gguf")
        write_gguf(checkpoint, tokenizer, exact, "f32")
        for kind in ("F32", *types):
            path = Path(folder, f"{kind}.gguf")
            if kind != "F32":
                settings = llama_cpp.llama_model_quantize_default_params()
                settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
                failed = llama_cpp.llama_model_quantize(
                    str(exact).encode(), str(path).encode(), settings
                )
                if failed:
                    raise RuntimeError(f"llama.cpp could not make {kind}: {failed}")
            model = open_in_llama_cpp(path, context=WINDOW, threads=threads)
            scored = [target_log_probs(llama_cpp_logits(model, w), w) for w in windows]
            yield f"llama.cpp {kind}", perplexity(scored), path.stat().st_size


if __name__ == "__main__":
    raise SystemExit(main())
