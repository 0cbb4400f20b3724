"""Engines under one protocol: a prefill of N tokens, a greedy decode of N tokens."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import Protocol

import numpy as np

from slimformer.engine import Engine
from slimformer.evaluate.speed import time_decode, time_prefill

SHORT_PROMPT = 16
"""Tokens before the decoded ones."""


class Contender(Protocol):
    """What takes part in a round; both methods give seconds."""

    name: str

    def prefill(self, tokens: int) -> float:
        """From a prompt of so many tokens to the logits of its last."""

    def decode(self, tokens: int) -> float:
        """Greedy tokens one by one after a short prompt."""


class Slimformer:
    """Slimformer's own engine."""

    def __init__(self, name: str, engine: Engine) -> None:
        self.name = name
        self.engine = engine

    def prefill(self, tokens: int) -> float:
        """See Contender."""
        return time_prefill(self.engine, tokens)

    def decode(self, tokens: int) -> float:
        """See Contender."""
        return time_decode(self.engine, tokens)


class LlamaCpp:
    """llama.cpp through its C interface, so that nothing of the Python wrapper is timed.

    Keys and values are kept as float16 and attention is fused: its fastest settings.
    """

    def __init__(self, name: str, path: Path, *, threads: int, context: int) -> None:
        import llama_cpp

        self.name = name
        self._api = llama_cpp
        self._model = llama_cpp.Llama(
            str(path),
            n_ctx=context,
            n_batch=context,
            n_ubatch=512,
            n_threads=threads,
            n_threads_batch=threads,
            flash_attn=True,
            verbose=False,
        )
        self._context = self._model.ctx
        self._vocab_size = self._model.n_vocab()

    def prefill(self, tokens: int) -> float:
        """See Contender."""
        ids = np.random.default_rng(0).integers(0, self._vocab_size, tokens)
        self._clear()
        start = time.perf_counter()
        self._logits(ids.tolist())
        return time.perf_counter() - start

    def decode(self, tokens: int) -> float:
        """See Contender."""
        ids = np.random.default_rng(0).integers(0, self._vocab_size, SHORT_PROMPT)
        self._clear()
        token = int(self._logits(ids.tolist()).argmax())
        start = time.perf_counter()
        for _ in range(tokens):
            token = int(self._logits([token]).argmax())
        return time.perf_counter() - start

    def _clear(self) -> None:
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)

    def _logits(self, ids: list[int]) -> np.ndarray:
        """Logits of the last token, [vocab]; a view that the next call overwrites."""
        array = (ctypes.c_int32 * len(ids))(*ids)  # the batch only points to it
        batch = self._api.llama_batch_get_one(array, len(ids))
        status = self._api.llama_decode(self._context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode gave {status}")
        logits = self._api.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(logits, shape=(self._vocab_size,))
