"""Chat templates: those of the well-known families, changed, and snippets that hang, grow, recurse or raise."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from finetune_local.data.conversation import Message, RowRejected
from finetune_local.data.encoding import guarded_template
from finetune_local.data.encoding.guarded_template import GuardedTemplate
from finetune_local.system.untrusted.guarded import Guarded, Limits
from fuzz.mutate import AWKWARD, mutate_bytes

COUNTS = (60, 30_000)

TEMPLATES = Path(__file__).parents[2] / "unit" / "data" / "templates"
VALUES = (
    "messages", "messages[0]", "messages[-1].content", "bos_token", "tools", "none", "true", "1", "0", "-1", "10**9", "2**(2**33)", "'a'", "'é\\ud800'",
    "''", "[]", "{}", "loop", "loop.index", "namespace(x=1)", "range(10**5)", "dict(a=1)", "missing", "missing.more", "messages.__class__", "cycler(1)",
    "joiner()", "lipsum", "self", "caller", "varargs", "1.5", "1e308", "''.format", "messages.append", "[].__class__.__mro__", "raise_exception",
)  # fmt: skip
FILTERS = (
    "", "| list", "| length", "| trim", "| tojson", "| tojson(indent=10**9)", "| center(10**9)", "| int", "| float", "| string", "| upper", "| join", "| sum",
    "| map('upper') | list", "| sort", "| first", "| last", "| random", "| batch(10**9) | list", "| slice(10**9) | list", "| replace('a', 'aa')", "| format(1)",
    "| indent(10**9)", "| wordwrap(1)", "| groupby('role')", "| selectattr('role') | list", "| attr('__class__')", "| round(10**9)", "| dictsort", "| items",
    "| xmlattr", "| urlize", "| filesizeformat", "| pprint", "| nothing", "| unique | list", "| default(1)", "| e", "| safe", "| min", "| max", "| abs",
)  # fmt: skip
BINARY = ("+", "-", "*", "/", "//", "%", "**", "~", "in", "==", "<", "and", "or", "is not")
BLOCKS = (
    "{% for i in VALUE %}INNER{% endfor %}",
    "{% for i in VALUE recursive %}{{ loop(VALUE) }}INNER{% endfor %}",
    "{% if VALUE %}INNER{% elif VALUE %}INNER{% endif %}",
    "{% set x = VALUE %}INNER",
    "{% set n = namespace(x=VALUE) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}INNER",
    "{% macro f(a=VALUE) %}INNER{{ f(a) }}{% endmacro %}{{ f() }}",
    "{% call(a) VALUE %}INNER{% endcall %}",
    "{% generation %}INNER{% endgeneration %}",
    "{% include VALUE %}{% import VALUE as y %}{% extends VALUE %}",
    "{% filter upper %}INNER{% endfilter %}",
    "{{ raise_exception(VALUE) }}INNER",
    "{{ strftime_now(VALUE) }}INNER",
    "{{ VALUE }}INNER",
    "{{- VALUE[VALUE] -}}INNER",
    "{{ VALUE(VALUE, x=VALUE) }}INNER",
    "{% break %}INNER",
    "{% raw %}INNER",
)


def prepare(folder: Path) -> Any:
    """The real templates; a child whose limits can be waited for."""
    guarded_template._child.close()
    guarded_template._child = Guarded("finetune_local.data.encoding.rendering", Limits(0.3, 400 * 2**20))
    return [path.read_bytes() for path in sorted(TEMPLATES.glob("*.jinja"))]


def attempt(prepared: list[bytes], draw: random.Random, folder: Path) -> None:
    """Ask all that is asked of a template; the answers that are found lie within the text."""
    if draw.random() < 0.5:
        text = mutate_bytes(draw.choice(prepared), draw).decode("utf-8", "surrogateescape")
    else:
        text = draw.choice(("", draw.choice(prepared).decode())) + _made(draw, 0)
    named = {"bos_token": "<s>", "eos_token": draw.choice(("</s>", "", "x"))}
    template = GuardedTemplate(text, named)
    template.stops = ["</s>", "<|im_end|>"]
    contents = [value for value in AWKWARD if isinstance(value, str)]
    roles = draw.choice(
        (["user", "assistant"], ["system", "user", "assistant"], ["user", "assistant", "tool", "assistant"])
    )
    messages = [Message(role, draw.choice(("hello", *contents))) for role in roles]  # type: ignore[arg-type]
    template.after_answer()
    template.ahead([messages])
    try:
        shown, spans = template.spans(messages)
    except RowRejected as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
        return
    assert all(0 <= span.start <= span.end <= len(shown) for span in spans)
    template.render_chat([{"role": "user", "content": draw.choice(AWKWARD[:40])}], tools=[{"name": "f"}])


def _made(draw: random.Random, depth: int) -> str:
    block = draw.choice(BLOCKS)
    while "VALUE" in block:
        block = block.replace("VALUE", _value(draw), 1)
    return block.replace("INNER", _made(draw, depth + 1) if depth < 3 and draw.random() < 0.6 else "x")


def _value(draw: random.Random) -> str:
    value = draw.choice(VALUES)
    if draw.random() < 0.4:
        value = f"({value} {draw.choice(BINARY)} {draw.choice(VALUES)})"
    return f"{value} {draw.choice(FILTERS)}" if draw.random() < 0.5 else value
