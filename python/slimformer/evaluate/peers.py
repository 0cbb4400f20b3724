"""Other engines under the protocol of `slimformer.evaluate.speed`, for comparison only.

They come with the extra ``peers`` and are imported when asked for. Each runs a GGUF file, at its
fastest settings, through the interface with the least Python in it.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from slimformer.errors import ConfigError
from slimformer.stopwatch import Times, some_tokens

PACKAGES = {"llama.cpp": "llama_cpp", "OpenVINO GenAI": "openvino_genai"}
"""The module that each peer is."""


def installed_peers() -> list[str]:
    """Names of the peers that can be imported here.

    Raises
    ------
    ConfigError
        There are none.
    """
    found = [peer for peer, module in PACKAGES.items() if importlib.util.find_spec(module)]
    if not found:
        raise ConfigError(
            "no peer is installed: expected one, from pip install 'slimformer[peers]'"
        )
    return found


def open_peer(
    peer: str, path: Path, *, threads: int, context: int, precision: str, label: str = ""
) -> LlamaCpp | OpenVino:
    """Open a GGUF file in one of `PACKAGES`.

    Parameters
    ----------
    threads, context:
        Threads, 0 meaning one a core, and the most tokens of a sequence.
    precision:
        What OpenVINO computes in, ``f32`` or ``bf16``; llama.cpp goes by the file.
    label:
        What results are to be called by, behind the peer's name.
    """
    name = f"{peer} {label}".strip()
    threads = threads or len(os.sched_getaffinity(0))
    if peer == "llama.cpp":
        return LlamaCpp(name, path, threads=threads, context=context)
    return OpenVino(name, path, threads=threads, context=context, precision=precision)


class LlamaCpp:
    """llama.cpp through its C interface.

    Keys and values are kept as float16 and attention is fused: its fastest settings.
    """

    def __init__(self, name: str, path: Path, *, threads: int, context: int) -> None:
        import llama_cpp

        self.name = name
        self.max_positions = context
        self._api = llama_cpp
        opening = _thread_of_llama_cpp().submit(
            llama_cpp.Llama,
            str(path),
            n_ctx=context,
            n_batch=context,
            n_ubatch=512,
            n_threads=threads,
            n_threads_batch=threads,
            flash_attn=True,
            verbose=False,
        )
        self._model = opening.result()
        self._context = self._model.ctx
        self._vocab_size = self._model.n_vocab()

    def run(self, prompt: int, generate: int) -> Times:
        """See `slimformer.evaluate.speed.Runner`."""
        return _thread_of_llama_cpp().submit(self._run, prompt, generate).result()

    def _run(self, prompt: int, generate: int) -> Times:
        ids = some_tokens(self._vocab_size, prompt)
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)
        start = time.perf_counter()
        token = int(self._logits(ids).argmax())
        prefilled = time.perf_counter()
        for _ in range(generate):
            token = int(self._logits([token]).argmax())
        return Times(prefilled - start, time.perf_counter() - prefilled)

    def _logits(self, ids: list[int]) -> Any:
        """Logits of the last token, float32 [vocab]; a view that the next call overwrites."""
        array = (ctypes.c_int32 * len(ids))(*ids)  # the batch only points to it
        batch = self._api.llama_batch_get_one(array, len(ids))
        status = self._api.llama_decode(self._context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode gave {status}")
        logits = self._api.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(logits, shape=(self._vocab_size,))


@functools.cache
def _thread_of_llama_cpp() -> ThreadPoolExecutor:
    """A thread of its own for all that llama.cpp does.

    It sets the shapes of tile registers (AMX) once a thread and kills the process if another engine
    has changed them since. With a second thread OpenMP counts more threads than processors and lets
    them sleep where they should spin: decoding then takes twice as long.
    """
    return ThreadPoolExecutor(max_workers=1)


class OpenVino:
    """OpenVINO GenAI; the times are those that its pipeline measures itself."""

    def __init__(
        self, name: str, path: Path, *, threads: int, context: int, precision: str
    ) -> None:
        import openvino
        import openvino_genai

        self.name = name
        self.max_positions = context
        self._openvino = openvino
        self._genai = openvino_genai
        self._pipeline = openvino_genai.LLMPipeline(
            str(path), "CPU", INFERENCE_PRECISION_HINT=precision, INFERENCE_NUM_THREADS=threads
        )
        self._vocab_size = len(self._pipeline.get_tokenizer().get_vocab())
        self._runs = 0

    def run(self, prompt: int, generate: int) -> Times:
        """See `slimformer.evaluate.speed.Runner`."""
        self._runs += 1  # the pipeline remembers the prompts that it has seen
        ids = np.array([some_tokens(self._vocab_size, prompt, seed=self._runs)], np.int64)
        inputs = self._genai.TokenizedInputs(
            self._openvino.Tensor(ids), self._openvino.Tensor(np.ones_like(ids))
        )
        settings = self._genai.GenerationConfig()
        settings.max_new_tokens = generate + 1  # the prefill makes the first
        settings.ignore_eos = True
        start = time.perf_counter()
        metrics = self._pipeline.generate(inputs, settings).perf_metrics
        taken = time.perf_counter() - start
        prefill = metrics.get_ttft().mean / 1e3
        return Times(prefill, taken - prefill)
