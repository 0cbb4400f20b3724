from __future__ import annotations

import datetime
import time

import pytest

from slimformer.chat_template import MAX_OUTPUT, ChatTemplate
from slimformer.errors import DataError, FormatError

GROW = (
    "{{% set ns = namespace(s='xxxxxxxx') %}}"
    "{{% for i in range(60) %}}{{% set ns.s = ns.s {0} ns.s %}}{{% endfor %}}"
)
USER = [{"role": "user", "content": "<hi> & 'you'"}]


def render(source: str, messages: list[dict[str, str]] = USER) -> str:
    template = ChatTemplate(source, bos="<s>", eos="</s>")
    return template.render(messages, add_generation_prompt=True)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}", "<s><hi> & 'you'</s>"),
        ("{{ messages[0] | tojson }}", '{"role": "user", "content": "<hi> & \'you\'"}'),
        ("{% for m in messages %}\n  {% if true %}\nx{% endif %}\n{% endfor %}", "x"),
        ("{% for i in range(3) %}{{ i }}{% if i == 1 %}{% break %}{% endif %}{% endfor %}", "01"),
        ("{% generation %}a{% endgeneration %}b", "ab"),
        ("{{ 'a' ~ 1 ~ 'b' + 'c' * 2 }}", "a1bcc"),
        ("{% if tools is none and documents is none %}no{% endif %}", "no"),
        ("{{ messages[0].content.upper() }}", "<HI> & 'YOU'"),
        ("{{ strftime_now('%Y') }}", str(datetime.date.today().year)),
    ],
)
def test_what_templates_use_works(source: str, expected: str) -> None:
    assert render(source) == expected


def test_a_template_may_refuse_messages() -> None:
    with pytest.raises(DataError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize("messages", [[{"content": "a"}], [{"role": "user"}], [{"role": 3}]])
def test_messages_need_a_role_and_content(messages: list[dict[str, str]]) -> None:
    with pytest.raises(DataError, match="expected a role"):
        render("x", messages)


@pytest.mark.parametrize("source", ["{% if %}", "{{ a", "{% unknown %}", "{{ a | nofilter }}"])
def test_broken_templates_are_format_errors(source: str) -> None:
    with pytest.raises(FormatError, match="does not compile"):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ self._TemplateReference__context.environment }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ strftime_now.__globals__['datetime'] }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_templates_reach_nothing_outside(source: str) -> None:
    with pytest.raises(DataError):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'x' * 999999999 }}",
        "{{ [0] * 999999999 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ '%999999999d' % 1 }}",
        GROW.format("~"),
        GROW.format("+"),
        "{% set n = namespace(v=9) %}{% for i in range(60) %}{% set n.v = n.v * n.v %}{% endfor %}",
        "{% set a = 'x' * 4000000 %}{% for i in range(99) %}{{ a }}{% endfor %}",
        "{{ undefined.attribute }}",
        "{{ 1 / 0 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_runaway_templates_are_stopped(source: str) -> None:
    begin = time.perf_counter()
    with pytest.raises(DataError):
        render(source)
    assert time.perf_counter() - begin < 5


def test_long_conversations_fit() -> None:
    messages = [{"role": "user", "content": "x" * 1000}] * 1000
    text = render("{% for m in messages %}{{ m.content }}{% endfor %}", messages)
    assert len(text) == 1_000_000 < MAX_OUTPUT
