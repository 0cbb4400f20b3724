"""Chat templates: small Jinja programs that come with a model, run as untrusted code."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import jinja2
import jinja2.compiler
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
from jinja2.exceptions import SecurityError

from slimformer.errors import DataError, FormatError

MAX_OUTPUT = 4 << 20
"""Most characters that a template may write, or join into one value."""

MAX_ITERATIONS = 100_000
"""Most numbers that all calls of ``range`` in one rendering may give."""


class ChatTemplate:
    """A compiled chat template.

    Parameters
    ----------
    source:
        The template's text.
    bos, eos:
        The special tokens' texts, which templates refer to.

    Raises
    ------
    FormatError
        The template does not compile.
    """

    def __init__(self, source: str, *, bos: str, eos: str) -> None:
        self._tokens = {"bos_token": bos, "eos_token": eos}
        environment = _Environment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[jinja2.ext.loopcontrols, _GenerationTag],
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise FormatError(f"chat template: does not compile: {error}") from error

    def render(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool) -> str:
        """The text of a conversation.

        Raises
        ------
        DataError
            A message lacks a role or content, or the template refuses the messages.
        """
        for message in messages:
            if not isinstance(message.get("role"), str) or "content" not in message:
                raise DataError(f"chat message: expected a role and a content, found {message!r}")
        try:
            pieces = self._template.generate(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                range=_limited_range(),
                **self._tokens,
            )
            return _join_limited(pieces)
        except (
            jinja2.TemplateError,
            ArithmeticError,
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
            RecursionError,
            MemoryError,
        ) as error:
            raise DataError(f"chat template: {error}") from error


class _CodeGenerator(jinja2.compiler.CodeGenerator):
    """Sends ``a ~ b`` through the environment, which checks its size."""

    def visit_Concat(  # noqa: N802 (the name is Jinja's)
        self, node: jinja2.nodes.Concat, frame: jinja2.compiler.Frame
    ) -> None:
        self.write("environment.join_checked((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The sandbox, with bounds on what arithmetic on strings and lists may build."""

    code_generator_class = _CodeGenerator
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def call_binop(
        self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any
    ) -> Any:
        if operator == "**":
            raise SecurityError("powers are not allowed")
        if operator == "%" and isinstance(left, str):
            raise SecurityError("string formatting is not allowed")
        if _size(left, operator, right) > MAX_OUTPUT:
            raise SecurityError("a value grows too large")
        return super().call_binop(context, operator, left, right)

    def join_checked(self, parts: Sequence[Any]) -> str:
        """``a ~ b``: the parts as one string."""
        texts = [str(part) for part in parts]
        if sum(map(len, texts)) > MAX_OUTPUT:
            raise SecurityError("a value grows too large")
        return "".join(texts)


class _GenerationTag(jinja2.ext.Extension):
    """``{% generation %}…{% endgeneration %}`` marks answers for training: here, just its body."""

    tags = frozenset({"generation"})  # type: ignore[assignment]  # only looked up

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _size(left: Any, operator: str, right: Any) -> int:
    """How large the result of an operation on sequences or whole numbers may become."""
    lengths = [len(value) if hasattr(value, "__len__") else None for value in (left, right)]
    if operator == "+":
        return sum(length or 0 for length in lengths)
    if operator == "*":
        for length, factor in ((lengths[0], right), (lengths[1], left)):
            if length is not None and isinstance(factor, int):
                return length * max(0, factor)
        if isinstance(left, int) and isinstance(right, int):
            return left.bit_length() + right.bit_length()
    return 0


def _limited_range() -> Callable[..., range]:
    left = MAX_ITERATIONS

    def limited(*bounds: int) -> range:
        nonlocal left
        values = range(*bounds)
        left -= min(len(values), MAX_ITERATIONS + 1)
        if left < 0:
            raise SecurityError("range gives too many numbers")
        return values

    return limited


def _join_limited(pieces: Any) -> str:
    texts: list[str] = []
    total = 0
    for piece in pieces:
        total += len(piece)
        if total > MAX_OUTPUT:
            raise SecurityError(f"writes more than {MAX_OUTPUT} characters")
        texts.append(piece)
    return "".join(texts)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _to_json(value: Any, indent: int | None = None) -> str:
    """Plain JSON; Jinja's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)
