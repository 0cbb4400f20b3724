"""Tokenizers read from GGUF metadata against llama.cpp's, token for token."""

from __future__ import annotations

import random
import unicodedata
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter

from reference.gguf_files import add_value, finish
from slimformer.checkpoint.gguf_header import open_gguf
from slimformer.checkpoint.gguf_tokenizer import tokenizer_from_gguf
from slimformer.tokenizer import TextStreamer, Tokenizer

llama_cpp = pytest.importorskip("llama_cpp")

PLAIN_TEXTS = (
    *("", " ", "  ", "a", "Hello world", "   before", "after   ", "x" * 300, " " * 130 + "x"),
    "1234567890 x=12.5e10; y = 007",
    "\t\ttabs\n\n\nlines\r\n\r\nCRLF\r",
    "don't you've I'LL we're  it's 'S 'Ve",
    "def f(x):\n    return x ** 2  # comment\n\n\n",
    "🙂👩‍👩‍👧‍👦🇩🇪 日本語 中文 한국어 العربية עברית हिन्दी",
    "½ ⅓ Ⅷ ²³ ① ١٢٣ 四",
    "<|im_start|>user<|im_end|> <|endoftext|> <s></s> <unk>",
    "a\u00a0b\u2003c\u200bd\x00\x01\x7f\ufeff\u2028",
    "--- *** ===>>> ~~~ ___ http://a.b/c?d=e&f=%20#g",
)
CHARACTERS = "abc XYZ 0129 \n\t\r .,;'\"!?-_()[]{}<>|/\\@#$%^&*+=~` éüñß日本🙂½١ſ\u00a0\u3000'ts"


def texts() -> list[str]:
    """Hand-picked traps, shipped prose, random mixtures of all kinds of characters."""
    rng = random.Random(0)
    mixed = ["".join(rng.choices(CHARACTERS, k=rng.randrange(1, 60))) for _ in range(1500)]
    ranges = ((0x20, 0x250), (0x250, 0xD7FF), (0x1F000, 0x1FBFF))
    wild = [
        "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randrange(1, 30)))
        for _ in range(500)
    ]
    data = resources.files("slimformer") / "data"
    prose = [(data / name).read_text(encoding="utf-8") for name in ("prose.txt", "drama.txt")]
    return [*PLAIN_TEXTS, *prose, *mixed, *wild]


def compare(path: Path, *, normal_form: bool = False) -> None:
    """Every text gives llama.cpp's tokens, comes back, and streams as it decodes."""
    peer = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    metadata = open_gguf(path).metadata
    assets = tokenizer_from_gguf(metadata, len(metadata.texts("tokenizer.ggml.tokens")))
    assert assets is not None
    tokenizer = Tokenizer(assets)
    for text in texts():
        if normal_form:
            text = unicodedata.normalize("NFC", text)
        for special in (False, True):
            found = tokenizer.encode(text, add_bos=False, special=special)
            assert found == peer.tokenize(text.encode(), add_bos=False, special=special), text
        ids = tokenizer.encode(text, add_bos=False)
        assert tokenizer.decode(ids) == text
        streamer = TextStreamer(tokenizer)
        assert "".join([*map(streamer.push, ids), streamer.flush()]) == text


def write_vocabulary(path: Path, **values: Any) -> None:
    """A GGUF file with a tokenizer and no tensors, which llama.cpp opens for its vocabulary."""
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    for key, value in values.items():
        add_value(writer, f"tokenizer.ggml.{key}", value)
    finish(writer)


def test_the_real_model(real_model_path: Path) -> None:
    compare(real_model_path)


@pytest.mark.parametrize("pre", ["gpt-2", "default", "smollm", "llama-bpe", "qwen2"])
def test_every_pre_tokeniser(real_model_path: Path, tmp_path: Path, pre: str) -> None:
    """The real vocabulary under every name of a pre-tokeniser.

    llama.cpp knows no normal forms; Qwen's tokenizer asks for one.
    """
    real = open_gguf(real_model_path).metadata
    write_vocabulary(
        tmp_path / "vocabulary.gguf",
        model="gpt2",
        pre=pre,
        tokens=real.texts("tokenizer.ggml.tokens"),
        token_type=real.array("tokenizer.ggml.token_type").tolist(),
        merges=real.texts("tokenizer.ggml.merges"),
        bos_token_id=1,
        eos_token_id=2,
        add_bos_token=False,
    )
    compare(tmp_path / "vocabulary.gguf", normal_form=pre == "qwen2")


@pytest.mark.parametrize("space_prefix", [True, False])
def test_sentencepiece(tmp_path: Path, space_prefix: bool) -> None:
    """A random vocabulary: words of common letters, each with a score of its own."""
    rng = np.random.default_rng(0)
    pieces = list("▁etaoinsrhld.,0123456789é日")
    while len(pieces) < 500:
        longer = "".join(pieces[index] for index in rng.integers(0, len(pieces), 2))
        if longer not in pieces and len(longer) < 12:
            pieces.append(longer)
    byte_tokens = [f"<0x{value:02X}>" for value in range(256)]
    write_vocabulary(
        tmp_path / "vocabulary.gguf",
        model="llama",
        pre="default",
        tokens=["<unk>", "<s>", "</s>", *byte_tokens, *pieces],
        token_type=[2, 3, 3] + [6] * 256 + [1] * len(pieces),
        scores=[0.0] * 259 + rng.permutation(np.arange(-float(len(pieces)), 0)).tolist(),
        bos_token_id=1,
        eos_token_id=2,
        unknown_token_id=0,
        add_space_prefix=space_prefix,
    )
    compare(tmp_path / "vocabulary.gguf")
