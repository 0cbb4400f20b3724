"""Slimformer as a model of lm-evaluation-harness.

Importing this registers the name ``slimformer`` there, which the harness knows no other way to be
told. It encodes and asks; here its questions are answered in ragged batches, and what contexts
have in common is computed once.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    from slimformer.errors import MissingPackageError

    raise MissingPackageError(
        "lm-evaluation-harness is not installed; pip install 'slimformer[eval]'"
    ) from error

from slimformer.engine import Engine
from slimformer.errors import ConfigError, DataError
from slimformer.evaluate.branches import Branch, score_branches
from slimformer.evaluate.writing import write_greedily
from slimformer.generation import GenerationOptions
from slimformer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

__all__ = ["NAME", "SlimformerLM", "cli_evaluate"]

NAME = "slimformer"

DEFAULT_NEW_TOKENS = 256
"""What the harness's own models write at most where a task does not say."""

GENERATED_TOGETHER = 32
"""Sequences that are written side by side: each step reads the weights once for all of them."""

_NOT_OURS = ("batch_size", "max_batch_size", "device")
"""Settings that the harness gives to every model; here batches are ragged and on this CPU."""


@register_model(NAME)
class SlimformerLM(TemplateLM):  # type: ignore[misc]  # lm_eval is untyped
    """Any model that Slimformer opens.

    Parameters
    ----------
    pretrained:
        What `slimformer.load` takes.
    weights, kv, threads:
        As of `slimformer.Engine`.
    max_length:
        Tokens that a sequence may have at most; by default the model's limit.
    add_bos_token:
        Whether texts begin with the beginning-of-sequence token; by default as the model asks.
    others:
        What the harness gives to every model, and is not needed here.

    Raises
    ------
    ConfigError
        A setting is not known.
    DataError
        The model has no tokenizer, or no token that stands in for an empty context.
    """

    def __init__(
        self,
        pretrained: str,
        weights: Any = "bf16",
        kv: Any = None,
        threads: int = 0,
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        **others: Any,
    ) -> None:
        super().__init__()
        unknown = sorted(others.keys() - set(_NOT_OURS))
        if unknown:
            raise ConfigError(
                f"model_args: unexpected {', '.join(unknown)}; known: pretrained, weights, kv, "
                "threads, max_length, add_bos_token"
            )
        self.engine = Engine(pretrained, weights=weights, kv=kv, threads=threads)
        if self.engine.tokenizer is None:
            raise DataError(f"{pretrained}: the model has no tokenizer")
        self._tokenizer: Tokenizer = self.engine.tokenizer
        self._add_bos = add_bos_token
        limit = self.engine.config.max_positions
        self.max_length: int = min(max_length or limit, limit)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        for token in (self._tokenizer.eos_id, self._tokenizer.bos_id):
            if token is not None:
                return token
        raise DataError(f"{self.engine.name}: the model has no token that begins or ends a text")

    @property
    def prefix_token_id(self) -> int:
        """What stands in for an empty context."""
        bos = self._tokenizer.bos_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """What the harness keeps encoded requests under."""
        return self.engine.name.replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_others: Any
    ) -> list[int]:
        """Token ids of a text, with special tokens where it names them."""
        add_bos = self._add_bos if add_special_tokens is None else add_special_tokens
        return self._tokenizer.encode(string, add_bos=add_bos, special=True)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The model's template, if one is asked for."""
        return self._tokenizer.chat_template if chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation."""
        return self._tokenizer.apply_chat_template(
            chat_history, add_generation_prompt=add_generation_prompt
        )

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str] | None, list[int], list[int]]],
        **_others: Any,
    ) -> list[tuple[float, bool]]:
        """Scores of encoded continuations; those of the same context are one branch."""
        by_context: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, (_, context, continuation) in enumerate(requests):
            if not continuation or len(continuation) > self.max_length:
                raise DataError(
                    f"a continuation of {len(continuation)} tokens: expected 1 to {self.max_length}"
                )
            # The last token of a sequence is predicted and not run.
            room = self.max_length + 1 - len(continuation)
            by_context[tuple(context[-room:])].append(index)
        branches = [
            Branch.of(context, [requests[index][2] for index in members])
            for context, members in by_context.items()
        ]
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        found = score_branches(self.engine, branches)
        for members, scores in zip(by_context.values(), found, strict=True):
            for index, score in zip(members, scores, strict=True):
                answers[index] = (score.log_likelihood, score.is_greedy)
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log likelihood of whole texts, in windows that do not overlap."""
        del disable_tqdm
        windows: list[tuple[list[int], int]] = []
        owner: list[int] = []
        for index, request in enumerate(requests):
            (text,) = request.args
            pairs = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, continuation in map(make_disjoint_window, pairs):
                windows.append(([*context, *continuation], len(continuation)))
                owner.append(index)
        totals = [0.0] * len(requests)
        for index, (tokens, count) in zip(owner, windows, strict=True):
            totals[index] += self._last_log_likelihood(tokens, count)
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _last_log_likelihood(self, tokens: list[int], count: int) -> float:
        """That of the last tokens of a sequence, whose last is not run: it may be one too long."""
        hidden, _ = self.engine.run_layers(
            self.engine.embed(tokens[:-1]),
            [len(tokens) - 1],
            first=0,
            last=len(self.engine.config.layers),
        )
        values = self.engine.score_hidden(hidden[-count:], tokens[-count:])
        return float(np.sum(values, dtype=np.float64))

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Texts that go on from contexts, greedily unless the task asks for samples."""
        del disable_tqdm
        asked = [self._asked(*request.args) for request in requests]
        # Those of one length start and end together, so that few steps run half empty.
        greedy = [index for index, (_, options) in enumerate(asked) if not options["temperature"]]
        greedy.sort(key=lambda index: (asked[index][1]["max_tokens"], len(asked[index][0])))
        written: dict[int, list[int]] = {}
        for begin in range(0, len(greedy), GENERATED_TOGETHER):
            chosen = greedy[begin : begin + GENERATED_TOGETHER]
            found = write_greedily(self.engine, [asked[index] for index in chosen])
            written.update(zip(chosen, found, strict=True))
        texts = []
        for index, (request, (prompt, options)) in enumerate(zip(requests, asked, strict=True)):
            if index not in written:
                written[index] = self.engine.generate_ids(prompt, **options)
            text = self._tokenizer.decode(written[index])
            texts.append(postprocess_generated_text(text, list(options["stop"]), None))
            self.cache_hook.add_partial("generate_until", request.args, texts[-1])
        return texts

    def _asked(self, context: str, settings: dict[str, Any]) -> tuple[list[int], GenerationOptions]:
        """The prompt of a request, and how to go on from it."""
        wanted = normalize_gen_kwargs(settings, DEFAULT_NEW_TOKENS)
        limit = int(wanted["max_gen_toks"])
        if limit >= self.max_length:
            raise DataError(
                f"max_gen_toks: expected less than the model's {self.max_length}, found {limit}"
            )
        options: GenerationOptions = {
            "max_tokens": limit,
            "temperature": float(wanted.get("temperature") or 0.0),
            "top_k": int(wanted.get("top_k") or 0),
            "top_p": float(wanted.get("top_p") or 1.0),
            "stop": [text for text in wanted["until"] if text],
        }
        prompt = self.tok_encode(context)[-(self.max_length - limit) :]
        return prompt or [self.prefix_token_id], options
