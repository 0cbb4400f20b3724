"""Small tokenizers of every kind, made from the prose that comes with the package."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from importlib import resources

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from slimformer.checkpoint import TokenizerAssets

BYTES = [f"<0x{value:02X}>" for value in range(256)]


@functools.cache
def prose() -> str:
    return (resources.files("slimformer") / "data" / "prose.txt").read_text(encoding="utf-8")


def byte_level() -> TokenizerAssets:
    """As SmolLM2, GPT-2 and Qwen have it; the special tokens come first and last."""
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<|begin|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator([prose()], trainer)
    library.add_special_tokens(["<|end|>"])
    library.add_tokens([AddedToken("<tool>", normalized=False)])
    library.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="<|begin|> $A <|end|>",
                special_tokens=[("<|begin|>", 0), ("<|end|>", library.token_to_id("<|end|>"))],
            ),
        ]
    )
    end = library.token_to_id("<|end|>")
    assert end is not None
    return TokenizerAssets(library.to_str(), bos="<|begin|>", eos="<|end|>", stop_ids=(end,))


def sentencepiece() -> TokenizerAssets:
    """As Llama 2 and Gemma have it: characters, with bytes to fall back on."""
    library = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    library.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    library.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<unk>", "<s>", "</s>", *BYTES],
        max_token_length=8,
        show_progress=False,
    )
    # In words: the merges of SentencePiece do not cross spaces.
    library.train_from_iterator(prose().split(), trainer)
    return TokenizerAssets(
        _only_special(library, ("<unk>", "<s>", "</s>")), bos="<s>", eos="</s>", stop_ids=(2,)
    )


def word_pieces() -> TokenizerAssets:
    """As BERT has it, framed by [CLS] and [SEP]."""
    library = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    library.normalizer = normalizers.BertNormalizer(lowercase=True)
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=700,
        special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"],
        show_progress=False,
    )
    library.train_from_iterator([prose()], trainer)
    library.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    library.enable_padding(pad_id=0, pad_token="[PAD]")
    return TokenizerAssets(library.to_str())


def unigram() -> TokenizerAssets:
    """As T5 and XLM-R have it."""
    library = Tokenizer(models.Unigram())
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=500, special_tokens=["<s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    library.train_from_iterator([prose()], trainer)
    return TokenizerAssets(library.to_str(), bos="<s>")


KINDS: dict[str, Callable[[], TokenizerAssets]] = {
    "byte_level": functools.cache(byte_level),
    "sentencepiece": functools.cache(sentencepiece),
    "word_pieces": functools.cache(word_pieces),
    "unigram": functools.cache(unigram),
}


def _only_special(library: Tokenizer, names: tuple[str, ...]) -> str:
    """The description with these tokens as special ones; a trainer makes bytes special, too."""
    fields = json.loads(library.to_str())
    fields["added_tokens"] = [t for t in fields["added_tokens"] if t["content"] in names]
    return json.dumps(fields, ensure_ascii=False)
