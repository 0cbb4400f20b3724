"""What another engine says of an exported model, against what this one says of its source."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint import Checkpoint, TokenizerAssets, load
from slimformer.engine import Engine
from slimformer.errors import DataError, VerificationError
from slimformer.export.exporting import Export, Format
from slimformer.optional import require_package
from slimformer.tokenizer import Tokenizer

ENGINES: dict[Format, str] = {"gguf": "llama_cpp", "huggingface": "transformers"}
"""The module that opens each format."""

NAMES: dict[Format, str] = {"gguf": "llama.cpp", "huggingface": "transformers"}

MAX_TOKENS = 256

SENTENCES = 500
"""Characters of it that encoders read."""

TOLERANCES = {"f32": 0.005, "f16": 0.01, "bf16": 0.01, "q8_0": 0.02, "q4_0": 0.02}
"""Relative. Engines round what they multiply to the type of the weights, each in its way."""

_QUANTISED = ("q8_0", "q4_0")

Floats = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Verification:
    """What one short text comes to: by this engine, and by another of what was exported.

    ``measure`` is the perplexity, or of an encoder the cosine with the vector of this engine.
    """

    engine: str
    tokens: int
    ours: float
    theirs: float
    tolerance: float
    same_tokens: bool
    measure: Literal["perplexity", "cosine"] = "perplexity"

    @property
    def difference(self) -> float:
        """Relative, of the two figures."""
        return abs(self.theirs / self.ours - 1)

    def check(self) -> None:
        """Raise ``VerificationError`` if the two do not agree."""
        if not self.difference <= self.tolerance:
            raise VerificationError(
                f"{self.engine} gives the exported model a {self.measure} of {self.theirs:.4f} "
                f"where {self.ours:.4f} was expected, more than {self.tolerance:.1%} off; do not "
                "use it"
            )
        if not self.same_tokens:
            raise VerificationError(
                f"{self.engine} cuts a text into other tokens than the model's own tokenizer"
            )


def verify(checkpoint: Checkpoint, exported: Export, *, threads: int = 0) -> Verification:
    """Let the engine that the format is for read a short text.

    It is compared with this engine on the source in float32; where the export was quantised, on
    the exported file, since quantising changes what a model says.

    Raises
    ------
    MissingPackageError
        That engine is not installed.
    DataError
        The model has no tokenizer.
    """
    module, name = ENGINES[exported.format], NAMES[exported.format]
    require_package(module, name, "verification of an export", extra="parity")
    if checkpoint.tokenizer is None:
        raise DataError(f"{checkpoint.name}: not verified: the model has no tokenizer")
    if not checkpoint.config.causal:
        return _verify_encoder(checkpoint, checkpoint.tokenizer, exported, threads)
    text = _text()
    tokens = Tokenizer(checkpoint.tokenizer).encode(text, add_bos=False)
    tokens = tokens[: min(MAX_TOKENS, checkpoint.config.max_positions)]
    dtype = exported.dtype
    source = load(exported.path) if dtype in _QUANTISED else checkpoint
    (ours,) = Engine(source, weights="f32", threads=threads).score([tokens])
    read = _llama_cpp if exported.format == "gguf" else _transformers
    threads = threads or len(os.sched_getaffinity(0))
    theirs, theirs_tokens = read(exported.path, tokens, text, threads)
    return Verification(
        engine=name,
        tokens=len(tokens) - 1,
        ours=math.exp(-float(np.mean(ours, dtype=np.float64))),
        theirs=math.exp(-float(np.mean(theirs))),
        tolerance=TOLERANCES[dtype],
        same_tokens=list(theirs_tokens[: len(tokens)]) == tokens,
    )


def _verify_encoder(
    checkpoint: Checkpoint, tokenizer: TokenizerAssets, exported: Export, threads: int
) -> Verification:
    """The same of an encoder, whose vector is the mean of what it makes of the tokens."""
    text = _text()[:SENTENCES]
    source = load(exported.path) if exported.dtype in _QUANTISED else checkpoint
    tokens = Tokenizer(tokenizer).encode_framed(text, checkpoint.config.max_positions)
    (ours,) = Engine(source, weights="f32", threads=threads).encode([text])
    read = _llama_cpp_vector if exported.format == "gguf" else _transformers_vector
    theirs, theirs_tokens = read(exported.path, text, threads or len(os.sched_getaffinity(0)))
    return Verification(
        engine=NAMES[exported.format],
        tokens=len(tokens),
        ours=1.0,
        theirs=float(ours @ theirs / np.linalg.norm(theirs)),
        tolerance=TOLERANCES[exported.dtype],
        same_tokens=list(theirs_tokens[: len(tokens)]) == tokens,
        measure="cosine",
    )


def _llama_cpp_vector(path: Path, text: str, threads: int) -> tuple[Floats, Sequence[int]]:
    import llama_cpp

    model = llama_cpp.Llama(
        str(path),
        n_ctx=MAX_TOKENS,
        n_threads=threads,
        n_threads_batch=threads,
        embedding=True,
        verbose=False,
    )
    vector = np.asarray(model.embed(text), np.float64)
    cut = model.tokenize(text.encode(), add_bos=True, special=False)
    model.close()
    return vector, cut


def _transformers_vector(path: Path, text: str, threads: int) -> tuple[Floats, Sequence[int]]:
    import torch
    from transformers import AutoModel, AutoTokenizer

    torch.set_num_threads(threads)
    model: Any = AutoModel.from_pretrained(path, dtype=torch.float32, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
    cut = tokenizer(text)["input_ids"]
    with torch.no_grad():
        states = model(torch.tensor([cut])).last_hidden_state[0].double().numpy()
    vector: Floats = states.mean(axis=0)
    return vector, cut


def _text() -> str:
    """Enough of a text that comes with the package."""
    prose = resources.files("slimformer") / "data" / "prose.txt"
    return prose.read_text(encoding="utf-8")[: MAX_TOKENS * 8]


def _llama_cpp(
    path: Path, tokens: Sequence[int], text: str, threads: int
) -> tuple[Floats, Sequence[int]]:
    import llama_cpp

    model = llama_cpp.Llama(
        str(path),
        n_ctx=len(tokens),
        n_threads=threads,
        n_threads_batch=threads,
        logits_all=True,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        verbose=False,
    )
    model.eval(list(tokens))
    logits = np.array(model.scores[: len(tokens)])
    cut = model.tokenize(text.encode(), add_bos=False, special=False)
    model.close()
    return _log_probs(logits, tokens), cut


def _transformers(
    path: Path, tokens: Sequence[int], text: str, threads: int
) -> tuple[Floats, Sequence[int]]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    # The only code in the folder is the modelling file that was just written.
    model: Any = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, trust_remote_code=True
    )
    with torch.no_grad():
        logits = model(torch.tensor([list(tokens)])).logits[0].numpy()
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
    cut = tokenizer(text, add_special_tokens=False)["input_ids"]
    return _log_probs(logits, tokens), cut


def _log_probs(logits: npt.NDArray[np.float32], tokens: Sequence[int]) -> Floats:
    """Log-probability of every token but the first, from logits [n_tokens, vocab_size]."""
    wide = logits[:-1].astype(np.float64)
    top = wide.max(axis=1, keepdims=True)
    total = top[:, 0] + np.log(np.exp(wide - top).sum(axis=1))
    found: Floats = wide[np.arange(len(wide)), list(tokens[1:])] - total
    return found
