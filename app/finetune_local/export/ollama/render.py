"""Renders a conversation as Ollama does with a Modelfile's TEMPLATE: an evaluator of the subset of Go templates used here.

Ollama puts the Modelfile's SYSTEM before a conversation without a leading system turn, joins adjacent turns of one role by an
empty line (except tool results), and passes `.Messages` and `.System` (all system texts, joined the same way) to the template.
https://github.com/ollama/ollama/blob/main/template/template.go and https://pkg.go.dev/text/template; a test compares with Go itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from finetune_local.system.untrusted.text import parse_json

_ESCAPED = {code: f"\\u{code:04x}" for code in range(32)}
"""Control characters in Go's string literals, which JSON does not allow."""

Chat = Sequence[Mapping[str, Any]]
"""Turns with `role`, `content` and optional keys a template may read (`tool_calls`, `reasoning_content`)."""


class UnknownGo(ValueError):
    """The template uses an action outside the supported subset."""


@dataclass
class _Node:
    """A text, or an action with the nodes of its branches."""

    text: str
    branches: list[tuple[str, list[_Node]]] = field(default_factory=list)


def render(template: str, chat: Chat, system: str | None = None) -> str:
    """The prompt Ollama passes to the model. Raises UnknownGo."""
    if system is not None and (not chat or chat[0]["role"] != "system"):
        chat = [{"role": "system", "content": system}, *chat]
    messages: list[dict[str, Any]] = []
    for message in chat:
        if messages and messages[-1]["role"] == message["role"] != "tool":
            messages[-1]["content"] += "\n\n" + message["content"]
        else:
            messages.append(dict(message))
    whole = "\n\n".join(str(m["content"]) for m in chat if m["role"] == "system")
    root = {"Messages": [{"Role": m["role"], "Content": m["content"]} for m in messages], "System": whole}
    nodes, rest = _parsed(list(_pieces(template)))
    if rest:
        raise UnknownGo(f"{{{{ {rest[0][1]} }}}} closes nothing")
    return "".join(_rendered(nodes, root, {"$": root}))


def _pieces(template: str) -> Iterator[tuple[str, str]]:
    """("text", ...) and ("action", ...) in order; trim markers ({{- -}}) remove adjacent white space, as in Go."""
    at, trim = 0, False
    for action in re.finditer(r"\{\{(-\s)?\s*(.*?)\s*(\s-)?\}\}", template, re.DOTALL):
        text = template[at : action.start()]
        text = text.lstrip(" \t\r\n") if trim else text
        yield "text", text.rstrip(" \t\r\n") if action[1] else text
        yield "action", action[2]
        at, trim = action.end(), bool(action[3])
    yield "text", template[at:].lstrip(" \t\r\n") if trim else template[at:]


def _parsed(pieces: list[tuple[str, str]]) -> tuple[list[_Node], list[tuple[str, str]]]:
    """The nodes up to the action that closes this list (or the end), and the remaining pieces."""
    nodes: list[_Node] = []
    while pieces:
        kind, text = pieces[0]
        if kind == "text":
            nodes.append(_Node(text))
        elif text == "end" or text.split(" ")[0] == "else":
            return nodes, pieces
        elif text.split(" ")[0] in ("if", "range"):
            node = _Node("")
            word, _, condition = text.partition(" ")
            head = f"{word} {condition}"
            while True:
                inner, pieces = _parsed(pieces[1:])
                if not pieces:
                    raise UnknownGo(f"{{{{ {head} }}}} has no end")
                node.branches.append((head, inner))
                closing = pieces[0][1]
                if closing == "end":
                    break
                head = closing.removeprefix("else").strip() or "else"
            nodes.append(node)
        else:
            nodes.append(_Node("", [("print " + text, [])]))
        pieces = pieces[1:]
    return nodes, []


def _rendered(nodes: Sequence[_Node], dot: Any, names: dict[str, Any]) -> Iterator[str]:
    for node in nodes:
        yield node.text
        for head, inner in node.branches:
            word, _, rest = head.partition(" ")
            if word == "print":
                yield _printed(_value(rest, dot, names))
            elif word == "range":
                pattern = re.fullmatch(r"(\$\w+), (\$\w+) := (\S+)", rest)
                if pattern is None:
                    raise UnknownGo(f"{{{{ {head} }}}}")
                for number, item in enumerate(_value(pattern[3], dot, names)):
                    yield from _rendered(inner, item, {**names, pattern[1]: number, pattern[2]: item})
            elif word == "else" or _value(rest, dot, names):
                yield from _rendered(inner, dot, names)
                break


def _value(expression: str, dot: Any, names: Mapping[str, Any]) -> Any:
    """The value of a pipeline with one command: a field, a variable, a string, an integer, or eq, and, or, not of these."""
    words = re.findall(r'"(?:[^"\\]|\\.)*"|[()]|[^\s()]+', expression)
    value, rest = _command(words, dot, names)
    if rest:
        raise UnknownGo(f"{{{{ {expression} }}}}")
    return value


def _command(words: list[str], dot: Any, names: Mapping[str, Any]) -> tuple[Any, list[str]]:
    if words and words[0] in ("eq", "and", "or", "not"):
        function, arguments, words = words[0], [], words[1:]
        while words and words[0] != ")":
            value, words = _operand(words, dot, names)
            arguments.append(value)
        return _applied(function, arguments), words
    return _operand(words, dot, names)


def _operand(words: list[str], dot: Any, names: Mapping[str, Any]) -> tuple[Any, list[str]]:
    if not words:
        raise UnknownGo("an operand is missing")
    word, *rest = words
    if word == "(":
        value, rest = _command(rest, dot, names)
        if rest[:1] != [")"]:
            raise UnknownGo("a bracket is not closed")
        return value, rest[1:]
    if word.startswith('"'):
        return parse_json(word.translate(_ESCAPED)), rest
    if word.isdecimal():
        return int(word), rest
    name, *fields = word.split(".")
    if name and name not in names:
        raise UnknownGo(f"{{{{ {word} }}}}")
    value = names[name] if name else dot
    for one in fields:
        value = value.get(one) if isinstance(value, dict) and one else value
    return value, rest


def _applied(function: str, arguments: Sequence[Any]) -> Any:
    if function == "not":
        return not arguments[0]
    if function == "eq":
        return any(arguments[0] == other for other in arguments[1:])
    decisive = function == "or"
    return next((one for one in arguments if bool(one) == decisive), arguments[-1])


def _printed(value: Any) -> str:
    if not isinstance(value, str):
        raise UnknownGo(f"a value that is no text is printed: {value!r:.60}")
    return value
