"""The template engine against transformers': the same text for the same chat, whatever a template uses."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_local.data.encoding.template_engine import compiled, render

from .conftest import TEMPLATES

pytestmark = pytest.mark.engine

CHATS: dict[str, list[dict[str, Any]]] = {
    "plain": [{"role": "user", "content": "hi <b>&\u2028 \n"}, {"role": "assistant", "content": " 好 \U0001f642"}],
    "system": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": ""},
    ],
    "none": [
        {"role": "user", "content": "q", "name": None, "tool_calls": None},
        {"role": "assistant", "content": None},
    ],
    "thoughts": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "thinking": "t"}],
    "reasoning": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "reasoning": "t"}],
    "tools": [
        {"role": "user", "content": "q"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "f", "arguments": {"x": "é", "n": 1}}}],
        },
        {"role": "tool", "content": "r", "name": "f"},
        {"role": "assistant", "content": "a"},
    ],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "image"}]}],
}
TEXTS = {
    "loops": "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ loop.index }}{{ m.content }}{% break %}{% endfor %}",
    "blanks": "a\n  {% if true %}\n  b\n  {% endif %}\n{{- '  x ' }} {# c #}\n\n{%- set y = 1 -%}\n{{ y }}\n",
    "json": "{{ messages | tojson }}{{ messages | tojson(indent=2, sort_keys=true) }}{{ tools | tojson(ensure_ascii=true) }}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "variables": "{{ bos_token }}{{ eos_token }}{{ unk_token is defined }}{{ documents is none }}{{ tools is none }}{{ add_generation_prompt }}",
    "namespace": "{% set n = namespace(a=1, self=2) %}{% for m in messages %}{% set n.a = n.a + 1 %}{% endfor %}{{ n.a }}{{ n.self }}",
    "dict": "{{ dict(a=1) }}{{ dict.fromkeys(['x'], 2) }}{{ dict([('k', 1)]) | items | list }}",
    "thoughts": "{% for m in messages %}{{ m.reasoning_content }}/{{ m.thinking }}/{{ m.reasoning }}/{{ m.keys() | list }};{% endfor %}",
    "strings": "{% for m in messages %}{{ m.content | trim | replace('q', 'Q') | e }}{{ (m.content or '').split(' ')[-1].strip('\\n') }}{% endfor %}",
    "macro": "{% macro say(m, x='') %}[{{ m.role }}{{ x }}{{ caller is defined }}]{% endmacro %}{% for m in messages %}{{ say(m, x=1) }}{% endfor %}",
    "date": "{{ strftime_now('%Y') }}",
    "refuses": "{{ raise_exception('roles must alternate') }}",
    "changes": "{% set x = messages[0].update({'content': 'y'}) %}{{ messages[0].content }}",
    "hidden": "{{ messages.__class__ }}",
    "private": "{% set n = namespace(_a=1) %}",
    "syntax": "{% for m in %}",
    "filter": "{{ 1 | nothing }}",
    **{path.stem: path.read_text("utf-8") for path in sorted(TEMPLATES.glob("*.jinja"))},
}
VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}
TOOLS = [{"type": "function", "function": {"name": "wéather", "parameters": {"type": "object", "properties": {}}}}]


@pytest.mark.parametrize("name", TEXTS)
def test_the_text_is_that_of_transformers(name: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    text = TEXTS[name]
    for prompt in (False, True):
        for tools in (None, TOOLS):
            for chat in CHATS.values():
                plain = [{key: value for key, value in m.items() if value is not None} for m in chat]
                given = {"tools": tools, "documents": None, "add_generation_prompt": prompt, **VARIABLES}
                try:
                    (theirs,), _ = render_jinja_template([plain], chat_template=text, **given)
                except Exception as error:  # noqa: BLE001 - whatever they say, we say
                    with pytest.raises(type(error)):
                        render(compiled(text), chat, prompt, VARIABLES, tools)
                else:
                    assert render(compiled(text), chat, prompt, VARIABLES, tools) == theirs
