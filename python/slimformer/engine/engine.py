"""A model packed for this CPU."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, get_args

from slimformer import _core
from slimformer.arrays import Floats, Tokens, as_tokens, batches
from slimformer.checkpoint import load
from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.checkpoint.packed import PackedTensor, PackedTensors
from slimformer.config import ModelConfig
from slimformer.encoding import Pooling, encode, to_length_one
from slimformer.engine.choices import (
    DEFAULT_SINKS,
    Kv,
    Sparse,
    Weights,
    check_choice,
    check_window,
    out_of_sight,
)
from slimformer.engine.loading import load_checkpoint
from slimformer.engine.session import Session
from slimformer.errors import ConfigError, DataError
from slimformer.generation import (
    Completion,
    GenerationOptions,
    GenerationSettings,
    collect,
    generate_ids,
    generate_text,
)
from slimformer.mask import Mask
from slimformer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Engine:
    """A model packed for this CPU.

    Parameters
    ----------
    model:
        A checkpoint, or what `slimformer.load` takes.
    width:
        Of a folder of several widths, the one to run; by default the widest.
    weights:
        What the matrices are packed as: ``f32``, ``bf16`` (half the memory), ``int8`` (a quarter)
        or ``int4``. The smaller, the faster; the last two also round what the matrices are
        multiplied by. By default ``bf16``, or what a packed model holds.
    sparse:
        Which matrices of bf16 and int8 weights are kept without their zeros: with ``auto`` those
        that have so many that a product takes less time, with ``smaller`` those that take fewer
        bytes then. In bf16 that changes no result; int8 weights are rounded otherwise, so that
        zeros stay zeros. A packed model stays as it is.
    threads:
        Threads of one forward pass; 0 means one a core.
    kv:
        Element type of keys and values that sessions keep, unless they ask otherwise; by default
        ``f32`` beside ``f32`` weights and ``bf16`` beside all others. ``int8`` takes 53 % of what
        ``bf16`` does, with a scale for each head and position.
    window, sinks:
        Where a window is given, sessions keep no more of a sequence than its last ``window`` tokens
        and its first ``sinks`` (Xiao et al. 2023), and so may go on beyond the model's limit, in
        memory that does not grow; what lies between is out of sight. `Session.out_of_sight` and
        `Completion.out_of_sight` count it.
    tier:
        The kernels to use; by default the best that the CPU runs, or what the environment
        variable ``SLIMFORMER_ISA`` names.

    Raises
    ------
    ConfigError
        A setting is not one of those offered, or the model has no such width.
    FormatError
        The model's tensors hold NaN or infinite values.
    UnsupportedModelError
        The model was packed for other kernels.
    """

    def __init__(
        self,
        model: Checkpoint | str | os.PathLike[str],
        *,
        width: float | None = None,
        weights: Weights | None = None,
        sparse: Sparse = "auto",
        threads: int = 0,
        kv: Kv | None = None,
        window: int | None = None,
        sinks: int = DEFAULT_SINKS,
        tier: str | None = None,
    ) -> None:
        check_choice("sparse", sparse, get_args(Sparse))
        if weights is not None:
            check_choice("weights", weights, get_args(Weights))
        if kv is not None:
            check_choice("kv", kv, get_args(Kv))
        start = time.perf_counter()
        if isinstance(model, Checkpoint):
            if width is not None:
                raise ConfigError(
                    f"width {width}: {model.name} is open; give it to slimformer.load"
                )
            checkpoint = model
        else:
            checkpoint = load(model, width=width)
        if isinstance(checkpoint.tensors, PackedTensors):
            checkpoint.tensors.check_weights(weights)
            weights = checkpoint.tensors.weights
        elif weights is None:
            weights = "bf16"
        self.name: str = checkpoint.name
        self.config: ModelConfig = checkpoint.config
        self.weights: Weights = weights
        self.kv: Kv = kv if kv is not None else "f32" if weights == "f32" else "bf16"
        self.window: int | None = window
        self.sinks: int = sinks
        check_window(window, sinks, self.config.max_positions)
        self._assets = checkpoint.tokenizer
        self._packed = _core.PackedModel(
            checkpoint.config, weights=weights, sparse=sparse, threads=threads, tier=tier
        )
        load_checkpoint(self._packed, checkpoint)
        self.tier: str = self._packed.tier
        self.threads: int = self._packed.threads
        self.weight_bytes: int = self._packed.weight_bytes
        self.load_seconds: float = time.perf_counter() - start

    @functools.cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer; made when first asked for, as it takes longer than mapping."""
        return None if self._assets is None else Tokenizer(self._assets)

    def packed_tensors(self) -> dict[str, PackedTensor]:
        """Every tensor as it lies in memory, for `slimformer.pack`."""
        layouts = _core.layouts(self.tier)
        shapes = self.config.tensor_shapes()
        return {
            name: PackedTensor.of(shapes[name], tensor, layouts)
            for name, tensor in self._packed.tensors().items()
        }

    def session(
        self,
        mask: Mask | None = None,
        *,
        kv: Kv | None = None,
        capacity: int | None = None,
        window: int | None = None,
        sinks: int | None = None,
    ) -> Session:
        """An empty sequence.

        Parameters
        ----------
        mask:
            Structures to leave out for as long as the session lives.
        kv:
            Element type of its keys and values.
        capacity:
            Positions it may grow to, at most the model's limit, which is the default. Models with
            LongRoPE turn keys by other frequencies in a session that may grow beyond
            ``config.usual_length``, so for them that is the default. With a window the limit of a
            model that knows positions by rotation, and the default, is 2^24.
        window, sinks:
            Other than the engine's, see `Engine`.
        """
        kv = self.kv if kv is None else kv
        check_choice("kv", kv, get_args(Kv))
        window = self.window if window is None else window
        sinks = self.sinks if sinks is None else sinks
        check_window(window, sinks, self.config.max_positions)
        if capacity is None and window is None:
            capacity = self.config.usual_length
        core = _core.Session(
            self._packed,
            plan=self._plan(mask),
            kv=kv,
            capacity=capacity,
            window=window,
            sinks=sinks,
        )
        return Session(self, core, window, sinks)

    def session_for(self, length: int, mask: Mask | None = None) -> Session:
        """An empty sequence with the frequencies of texts of so many tokens.

        It may grow as far as they hold, or without end where the engine has a window.
        """
        if self.window is not None:
            return self.session(mask)
        usual = self.config.usual_length
        capacity = usual if length <= usual else self.config.max_positions
        return self.session(mask, capacity=capacity)

    def forward(
        self,
        sessions: Sequence[Session],
        tokens: Sequence[Tokens],
        *,
        logits: Literal["last", "all", "none"] = "last",
    ) -> Floats:
        """Feeds each session its tokens, all in one pass.

        Parameters
        ----------
        sessions, tokens:
            Sequences of any lengths, each session once. If anything is wrong with one of them,
            none of them changes.
        logits:
            Which rows to return: each sequence's ``last``, ``all`` or ``none``.

        Returns
        -------
        float32 [sequences, vocab_size], [all tokens, vocab_size] or [0, vocab_size].

        Raises
        ------
        TokenError, ContextLengthError, DataError
        """
        return self._packed.forward(
            [session._core for session in sessions],
            [as_tokens(ids) for ids in tokens],
            logits=logits,
        )

    def score(self, sequences: Sequence[Tokens], *, mask: Mask | None = None) -> list[Floats]:
        """Log-probability (natural) of every token but the first, given those before it.

        Returns
        -------
        For each sequence float32 [its length - 1].
        """
        scores: list[Floats] = []
        for batch in batches([as_tokens(ids) for ids in sequences]):
            sessions = [self.session_for(len(ids), mask)._core for ids in batch]
            scores += self._packed.score(sessions, batch)
        return scores

    def embed(self, tokens: Tokens, lengths: Sequence[int] | None = None) -> Floats:
        """Hidden states that enter the first layer, float32 [n_tokens, n_channels].

        With ``lengths`` the tokens are those of several sequences, each from position 0.
        """
        return self._packed.embed(as_tokens(tokens), lengths)

    def run_layers(
        self,
        hidden: Floats,
        lengths: Sequence[int],
        *,
        first: int,
        last: int,
        mask: Mask | None = None,
        moments: Mapping[tuple[int, str], _core.Moments] | None = None,
        capture: Sequence[tuple[int, str]] = (),
    ) -> tuple[Floats, dict[tuple[int, str], Floats]]:
        """Runs layers ``first`` up to but without ``last`` on given hidden states.

        Parameters
        ----------
        hidden:
            [tokens of all sequences, n_channels]; each sequence starts at position 0.
        lengths:
            Tokens of each sequence.
        moments:
            By (layer, site), statistics to add what flows past that tap to.
        capture:
            Taps whose values are returned. Sites: ``attention_input``, ``attention_normed``,
            ``attention_heads`` (input of the output projection), ``ffn_input``, ``ffn_normed``,
            ``ffn_neurons`` (input of the down projection; of a routed FFN those of all experts,
            weighted as their outputs are), ``ffn_experts`` (length of what each expert adds),
            ``layer_output``.

        Returns
        -------
        The hidden states after the last of these layers, and the captured values
        [tokens, width] by tap.
        """
        return self._packed.run_layers(
            hidden,
            list(lengths),
            first=first,
            last=last,
            plan=self._plan(mask),
            moments=moments,
            capture=list(capture),
        )

    def encode(
        self, texts: Sequence[str], *, pooling: Pooling = "mean", normalise: bool = True
    ) -> Floats:
        """Texts as vectors, by an encoder.

        Parameters
        ----------
        texts:
            Each is cut to the model's limit of tokens.
        pooling:
            The ``mean`` or the ``max`` over the tokens of a text, or its first token (``cls``).
        normalise:
            Whether vectors are scaled to length 1, so that their products are cosines.

        Returns
        -------
        float32 [texts, n_channels], in the order of the texts.

        Raises
        ------
        ConfigError
            The model is no encoder, or ``pooling`` is not known.
        DataError
            The model has no tokenizer, or a text without any token.
        """
        check_choice("pooling", pooling, get_args(Pooling))
        if self.config.causal:
            raise ConfigError(f"{self.name}: a model that predicts tokens does not encode texts")
        tokenizer = self._require_tokenizer()
        ids = [tokenizer.encode_framed(text, self.config.max_positions) for text in texts]
        vectors = encode(self._states, ids, self.config.n_channels, pooling)
        return to_length_one(vectors) if normalise else vectors

    def _states(self, tokens: list[int], lengths: list[int]) -> Floats:
        """Hidden states behind the last layer, [tokens, n_channels]."""
        last = len(self.config.layers)
        return self.run_layers(self.embed(tokens, lengths), lengths, first=0, last=last)[0]

    def logits(self, hidden: Floats) -> Floats:
        """Final norm and head: [n_tokens, n_channels] to [n_tokens, vocab_size]."""
        return self._packed.logits(hidden)

    def score_hidden(self, hidden: Floats, targets: Tokens) -> Floats:
        """Log-probability of one target a row, without holding all logits, [n_tokens]."""
        return self._packed.score_hidden(hidden, as_tokens(targets))

    def prompt_ids(self, prompt: str, *, chat: bool = False) -> list[int]:
        """Token ids of a prompt, as text to go on from or as a user's message."""
        tokenizer = self._require_tokenizer()
        if not chat:
            return tokenizer.encode(prompt)
        text = tokenizer.apply_chat_template([{"role": "user", "content": prompt}])
        return tokenizer.encode(text, special=True)

    def generate_ids(self, prompt: Tokens, **options: Unpack[GenerationOptions]) -> list[int]:
        """New token ids after a prompt of token ids; a model without tokenizer can do this too."""
        settings = GenerationSettings(**options)
        if self.tokenizer is None and not settings.stop:
            ids = as_tokens(prompt).tolist()
            return list(self._new_ids(ids, settings, frozenset()))
        return collect(self._pieces(prompt, settings)).tokens

    def complete(
        self, prompt: str, *, chat: bool = False, **options: Unpack[GenerationOptions]
    ) -> Completion:
        """What the model writes after a prompt, as text and as tokens.

        Parameters
        ----------
        prompt:
            Text to go on from, or with ``chat`` a user's message.
        chat:
            Whether to put the prompt into the model's chat template.
        options:
            See `slimformer.generation.GenerationSettings`.

        Raises
        ------
        ConfigError, DataError, ContextLengthError
        """
        settings = GenerationSettings(**options)
        ids = self.prompt_ids(prompt, chat=chat)
        written = collect(self._pieces(ids, settings))
        read = len(ids) + len(written.tokens) - 1
        return dataclasses.replace(
            written, out_of_sight=out_of_sight(read, self.window, self.sinks)
        )

    def generate(
        self, prompt: str, *, chat: bool = False, **options: Unpack[GenerationOptions]
    ) -> str:
        """The text that the model writes after a prompt; see `complete`."""
        return self.complete(prompt, chat=chat, **options).text

    def stream(
        self, prompt: str, *, chat: bool = False, **options: Unpack[GenerationOptions]
    ) -> Iterator[str]:
        """The same text in pieces as they are written, characters never split."""
        pieces = self._pieces(self.prompt_ids(prompt, chat=chat), GenerationSettings(**options))
        return (text for _, text in pieces if text)

    def _pieces(
        self, prompt: Tokens, settings: GenerationSettings
    ) -> Iterator[tuple[int | None, str]]:
        tokenizer = self._require_tokenizer()
        ids = as_tokens(prompt).tolist()
        new = self._new_ids(ids, settings, tokenizer.stop_ids)
        return generate_text(new, tokenizer, settings.stop, ids)

    def _new_ids(
        self, prompt: list[int], settings: GenerationSettings, stop_ids: frozenset[int]
    ) -> Iterator[int]:
        sampler = _core.Sampler(
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            min_p=settings.min_p,
            repetition_penalty=settings.repetition_penalty,
            seed=settings.seed,
        )
        session = self.session_for(len(prompt), settings.mask)
        longer = functools.partial(self.session_for, mask=settings.mask)
        return generate_ids(session, longer, sampler, prompt, settings.max_tokens, stop_ids)

    def _require_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise DataError(f"{self.name}: this model has no tokenizer; pass token ids instead")
        return self.tokenizer

    def _plan(self, mask: Mask | None) -> _core.Plan | None:
        return None if mask is None else _core.Plan(self._packed, **vars(mask))
