"""The same weights for other engines: GGUF files for llama.cpp, log-probabilities of theirs."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import numpy.typing as npt

from slimformer.checkpoint import Checkpoint
from slimformer.config import AttentionConfig, FfnConfig

Array = npt.NDArray[Any]
GgufType = Literal["f32", "bf16", "f16", "q8_0", "q4_0"]

PLAIN = {"attn_implementation": "eager", "experts_implementation": "eager"}
"""How transformers computes: its grouped products want rows of a multiple of 16 bytes."""

FILE_TYPES: dict[GgufType, str] = {
    "f32": "ALL_F32",
    "f16": "MOSTLY_F16",
    "bf16": "MOSTLY_BF16",
    "q8_0": "MOSTLY_Q8_0",
    "q4_0": "MOSTLY_Q4_0",
}
ATTENTION_NAMES = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output"}
FFN_NAMES = {"gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}


def write_gguf(checkpoint: Checkpoint, tokenizer: Path, path: Path, dtype: GgufType) -> None:
    """Write a model of uniform layers as GGUF; its tokenizer is that of another GGUF file.

    llama.cpp rotates neighbouring pairs, so the rows of q and k are interleaved.
    """
    config = checkpoint.config
    attentions = {layer.attention for layer in config.layers}
    ffns = {layer.ffn for layer in config.layers}
    (attention,), (ffn,) = attentions, ffns
    assert isinstance(attention, AttentionConfig)
    assert isinstance(ffn, FfnConfig)
    assert attention.rope is not None
    assert attention.rope.scaling is None
    assert config.tied_head

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.n_channels)
    writer.add_block_count(len(config.layers))
    writer.add_feed_forward_length(ffn.n_neurons)
    writer.add_head_count(attention.n_heads)
    writer.add_head_count_kv(attention.n_kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_dimension_count(attention.rope.rotary_dim)
    writer.add_rope_freq_base(attention.rope.theta)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[dtype]])
    _copy_tokenizer(tokenizer, writer)

    matrices = gguf.GGMLQuantizationType[dtype.upper()]

    def add(target: str, source: str, kind: gguf.GGMLQuantizationType) -> None:
        values = checkpoint.read_f32(source)
        if target.endswith(("attn_q.weight", "attn_k.weight")):
            values = interleave_rows(values, attention.head_dim)
        writer.add_tensor(target, gguf.quants.quantize(values, kind), raw_dtype=kind)

    vectors = gguf.GGMLQuantizationType.F32
    add("token_embd.weight", "embedding.weight", matrices)
    add("output_norm.weight", "final_norm.weight", vectors)
    for index in range(len(config.layers)):
        for sub_block, names in (("attention", ATTENTION_NAMES), ("ffn", FFN_NAMES)):
            source = f"layers.{index}.{sub_block}"
            norm = "attn_norm" if sub_block == "attention" else "ffn_norm"
            add(f"blk.{index}.{norm}.weight", f"{source}.norm.weight", vectors)
            for ours, theirs in names.items():
                add(f"blk.{index}.{theirs}.weight", f"{source}.{ours}.weight", matrices)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleave_rows(weight: Array, head_dim: int) -> Array:
    """Rows (j, j + head_dim / 2) of every head moved next to each other."""
    pairs = weight.reshape(-1, 2, head_dim // 2, weight.shape[-1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(weight.shape))


def _copy_tokenizer(source: Path, writer: gguf.GGUFWriter) -> None:
    for name, field in gguf.GGUFReader(source).fields.items():
        if name.startswith("tokenizer."):
            kind, *elements = field.types
            writer.add_key_value(name, field.contents(), kind, elements[0] if elements else None)


def open_in_transformers(folder: Path, **options: Any) -> Any:
    """Open a folder as ``AutoModelForCausalLM`` in float32; nothing missing, nothing left over."""
    import torch
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, **{**PLAIN, **options}
    )
    assert not report["missing_keys"], report
    assert not report["unexpected_keys"], report
    assert not report["mismatched_keys"], report
    return model.eval()


def transformers_logits(model: Any, tokens: Sequence[int]) -> Array:
    """Logits of every position, float32 [n_tokens, vocab]."""
    import torch

    with torch.no_grad():
        logits = model(torch.tensor([list(tokens)]), use_cache=False).logits[0]
    return np.asarray(logits.numpy())


def llama_cpp_logits(model: Any, tokens: Sequence[int]) -> Array:
    """Logits of every position of a fresh sequence, float32 [n_tokens, vocab].

    On a new thread: llama.cpp sets the shapes of tile registers (AMX) once a thread and kills the
    process where another engine, such as PyTorch, has changed them since.
    """

    def run() -> Array:
        model.reset()
        model.eval(list(tokens))
        return np.array(model.scores[: len(tokens)], dtype=np.float32)

    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(run).result()


def open_in_llama_cpp(path: Path, *, context: int, threads: int = 2) -> Any:
    """Open a GGUF file with float32 keys and values and the logits of every position."""
    import llama_cpp

    return llama_cpp.Llama(
        str(path),
        n_ctx=context,
        n_threads=threads,
        n_threads_batch=threads,
        logits_all=True,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        verbose=False,
    )


def target_log_probs(logits: Array, tokens: Sequence[int]) -> Array:
    """Natural log p(token[t + 1] | <= t) from logits [n_tokens, vocab]: [n_tokens - 1]."""
    wide = np.asarray(logits[:-1], dtype=np.float64)
    top = wide.max(axis=-1, keepdims=True)
    log_total = top[:, 0] + np.log(np.exp(wide - top).sum(axis=-1))
    chosen: Array = wide[np.arange(len(wide)), np.asarray(tokens[1:])] - log_total
    return chosen


def perplexity(log_probs: Sequence[Array]) -> float:
    """Of all scored tokens of several windows together."""
    return float(np.exp(-np.mean(np.concatenate(log_probs))))
