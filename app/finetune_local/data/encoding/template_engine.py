"""Jinja configured as transformers does for chat templates: the same text for the same messages, without importing transformers.

tests/unit/data/test_template_engine.py compares the two. Templates are untrusted programs; they run only in the guarded child
(data/encoding/rendering.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.utils
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

Chat = Sequence[Mapping[str, Any]]

_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Message keys for reasoning text; templates read the first, gpt-oss's the second."""


class _Generation(jinja2.ext.Extension):
    """{% generation %} … {% endgeneration %}: marks answers for other programs; renders its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja's way

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """Parse one such block."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_shown"), [], [], body).set_lineno(line)

    @jinja2.pass_eval_context
    def _shown(self, context: Any, caller: Any) -> Any:
        return caller()


class _Dict:
    """`dict` for templates: a constructor without the type's other attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


class _Namespace(jinja2.utils.Namespace):
    """`namespace` for templates, without names that start with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, rest = args[0], args[1:]
        values = dict(*rest, **kwargs)
        for name in values:
            _checked(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _checked(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)


def _checked(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot have an attribute that begins with an underscore, as {name!r} does")


def _raise_exception(message: Any) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def compiled(text: str) -> jinja2.Template:
    """A chat template ready to render. Raises whatever Jinja and Python raise for a bad one."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _Namespace
    return environment.from_string(text)


def render(
    template: jinja2.Template,
    chat: Chat,
    generation_prompt: bool,
    variables: Mapping[str, Any],
    tools: Sequence[Any] | None = None,
    documents: Sequence[Any] | None = None,
) -> str:
    """The text of a chat, as `apply_chat_template(tokenize=False)` returns it. Raises whatever the template does."""
    given = {"messages": [_shown(m) for m in chat], "tools": tools, "documents": documents}
    return template.render({**variables, **given, "add_generation_prompt": generation_prompt})


def _shown(message: Mapping[str, Any]) -> dict[str, object]:
    """A message as templates see it: without keys that are None, its reasoning under the names that templates know."""
    values = {key: value for key, value in message.items() if value is not None}
    thoughts = next((values[key] for key in _REASONING if key in values), None)
    return values if thoughts is None else {"thinking": thoughts, **values, "reasoning_content": thoughts}
