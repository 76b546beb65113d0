"""A chat template for Ollama, which uses Go templates instead of Jinja: derived from how the model's own template renders.

The text before and after each kind of turn is read off a few renderings. The derived template is used only if it is proven:
Ollama's rendering of it (render.py) must equal the model's own template on every conversation of PROBES, on two different days.
ChatML and similar templates pass. Ollama's templates have no trimming, no text search and no tool schemas in the model's format; a
model that needs those gets no TEMPLATE, with the reason, and Ollama then renders the model's own template from the GGUF.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Protocol

from finetune_local.data.conversation import Message, RowRejected
from finetune_local.export.ollama import render as ollama_render
from finetune_local.system.messages import msg

Render = Callable[[Sequence[Message], bool], str]
"""Renders a conversation as the app prompts with it, with or without the start of the next answer. Raises RowRejected."""

_SYSTEM, _QUESTION, _ANSWER, _RESULT, _AGAIN = "sys-7c2e", "ask-41d9", "say-b60f", "got-93aa", "ask-e835"

DAYS = (date(2021, 3, 4), date(2033, 11, 25))
"""Two days on which a conversation must be rendered equally, since a TEMPLATE has no access to the date."""
TOOLS: Sequence[Mapping[str, Any]] = (
    {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": "Look a word up.",
            "parameters": {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
        },
    },
)
_CALL = [{"type": "function", "id": "call12345", "function": {"name": "look_up", "arguments": {"word": "数"}}}]


class Template(Protocol):
    """Renders a conversation by the model's own template, with the start of the next answer, as transformers does on a given day."""

    def __call__(self, chat: Chat, tools: Sequence[Mapping[str, Any]], day: date, /) -> str:
        """Raises RowRejected if the template refuses the conversation."""
        ...


class NotRecognised(Exception):
    """The template renders turns in a way that cannot be reproduced exactly; the text says how."""


@dataclass(frozen=True)
class Turns:
    """The text before and after each kind of turn."""

    start: str
    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]
    tool: tuple[str, str] | None
    """None if the template does not support tool results."""
    answer: str
    """After the last turn: the start of the answer."""
    default: str | None
    """The template's default system text; becomes Ollama's SYSTEM."""

    def go(self) -> str:
        """The Go template."""
        roles = {"system": self.system, "user": self.user, "assistant": self.assistant, "tool": self.tool}
        turns = "{{ else ".join(
            f'if eq .Role "{role}" }}}}{pieces[0]}{{{{ .Content }}}}{pieces[1]}'
            for role, pieces in roles.items()
            if pieces
        )
        return (
            f"{self.start}{{{{ range $i, $message := .Messages }}}}{{{{ {turns}{{{{ end }}}}{{{{ end }}}}{self.answer}"
        )

    def pieces(self) -> Sequence[str]:
        """All literal texts of the template."""
        pairs = (self.system, self.user, self.assistant, self.tool or ("", ""))
        return (self.start, *(piece for pair in pairs for piece in pair), self.answer)


def turns_of(render: Render, template: Template, bos: str, bos_is_added: bool) -> Turns:
    """The turns of a template, proven. `render` is how the app prompts, `template` the model's own; `bos` is the text of the token at the
    start of every prompt ("" for none), `bos_is_added` whether the runtime adds it.

    Raises NotRecognised.
    """
    try:
        found = _found(render, template, bos, bos_is_added)
    except RowRejected as error:
        raise NotRecognised(msg("it rejects an ordinary conversation: {error}", error=error)) from None
    if any("{{" in piece or "}}" in piece for piece in found.pieces()):
        raise NotRecognised(msg("it writes braces, which mean something else to Ollama"))
    for probe in PROBES:
        _prove(found, probe, render, template, bos if bos_is_added else "")
    return found


def _prove(found: Turns, probe: Probe, render: Render, template: Template, added: str) -> None:
    """Raise NotRecognised if Ollama would render a different text than the model's own template."""
    own = _own(probe, DAYS[0], render, template)
    if own != _own(probe, DAYS[1], render, template):
        raise NotRecognised(msg("it writes the day's date"))
    if own is not None and ollama_render.render(found.go(), probe.chat, found.default) != own.removeprefix(added):
        raise NotRecognised(probe.shows)


def _own(probe: Probe, day: date, render: Render, template: Template) -> str | None:
    """The model's own rendering; if its template refuses the conversation, the app's; None if both refuse."""
    try:
        return template(probe.chat, probe.tools, day)
    except RowRejected:
        pass
    try:
        return render([Message(turn["role"], turn["content"]) for turn in probe.chat], True)
    except RowRejected:
        return None


def _found(render: Render, template: Template, bos: str, bos_is_added: bool) -> Turns:
    question, answer, again = Message("user", _QUESTION), Message("assistant", _ANSWER), Message("user", _AGAIN)
    first, end = _cut(render([question], True), _QUESTION)
    before, between, after, last = _cut(render([question, answer, again], True), _QUESTION, _ANSWER, _AGAIN)
    opened, joined, closed = _cut(render([Message("system", _SYSTEM), question], True), _SYSTEM, _QUESTION)
    _, question_end = _cut(render([question], False), _QUESTION)
    if before != first or last != end or closed != end:
        raise NotRecognised(msg("it writes the first or the last turn differently from others"))
    if not (between.startswith(question_end) and end.startswith(question_end)):
        question_end = _common(between, end)
    start = ""
    bare = first.removeprefix(bos)
    if bare != first and opened.startswith(bos) and (bos_is_added or after.endswith(bare) > after.endswith(first)):
        first, opened, start = bare, opened.removeprefix(bos), "" if bos_is_added else bos
    default, head = None, first
    if not after.endswith(first):
        if not (first.startswith(opened) and first.endswith(joined) and len(first) > len(opened) + len(joined)):
            raise NotRecognised(msg("it writes the first turn differently from later ones"))
        default, head = first[len(opened) : len(first) - len(joined)], after.removeprefix(question_end)
        if not joined.endswith(head):
            head = _common(after[::-1], joined[::-1])[::-1]
    if not joined.endswith(head):
        raise NotRecognised(msg("it puts the system text into a user's turn"))
    spoken = between.removeprefix(question_end), after.removesuffix(head)
    return Turns(
        start,
        (opened, joined.removesuffix(head)),
        (head, question_end),
        spoken,
        _tool(render, template, spoken[1], head),
        end.removeprefix(question_end),
        default,
    )


def _tool(render: Render, template: Template, answered: str, head: str) -> tuple[str, str] | None:
    """The text around a tool result between an answer that ends with `answered` and a question that starts with `head`."""
    roles = ("user", _QUESTION), ("assistant", _ANSWER), ("tool", _RESULT), ("user", _AGAIN)
    chat = [{"role": role, "content": content} for role, content in roles]
    try:
        text = _own(Probe("", chat), DAYS[0], render, template)
        _, _, before, after, _ = _cut(text or "", _QUESTION, _ANSWER, _RESULT, _AGAIN)
    except NotRecognised:
        return None
    return before.removeprefix(answered), after.removesuffix(head)


def _cut(text: str, *marks: str) -> list[str]:
    """The text before, between and after the marks, each of which must occur exactly once."""
    parts = []
    for mark in marks:
        if text.count(mark) != 1:
            raise NotRecognised(msg("it omits or repeats messages"))
        before, _, text = text.partition(mark)
        parts.append(before)
    return [*parts, text]


def _common(one: str, other: str) -> str:
    """The common prefix of both."""
    length = next((i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
    return one[:length] if length is not None else min(one, other, key=len)


Chat = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Probe:
    """A conversation. `shows`: what the model's template does if the two renderings differ, as the end of a sentence."""

    shows: str
    chat: Chat
    tools: Sequence[Mapping[str, Any]] = ()


def _turn(role: str, content: str, **more: Any) -> dict[str, object]:
    return {"role": role, "content": content, **more}


def _ordinary() -> list[Probe]:
    turns = [
        _turn("user", "What is {{ this }}?\n\nTwo lines, please."),
        _turn("assistant", 'A "quoted" word, 和中文。'),
        _turn("user", "再问一次：1 + 1 = ?"),
        _turn("assistant", "2"),
        _turn("user", "Thanks <b>!</b> {% raw %} {{ .System }}"),
    ]
    rules = _turn("system", "You are terse.\nAnswer in one line.")
    shows = msg("it writes some turns differently from others")
    return [
        probe
        for n in (1, 3, 5)
        for probe in (Probe(shows, turns[:n]), Probe(msg("it puts the system text elsewhere"), [rules, *turns[:n]]))
    ]


_USER_TURN, _ANSWER_TURN, _LATER_TURN = _turn("user", "a"), _turn("assistant", "b"), _turn("user", "c")

PROBES: Sequence[Probe] = (
    *_ordinary(),
    Probe(msg("it strips white space from the ends of a text"), [_turn("user", " at both ends \n")]),
    Probe(msg("it strips white space from the ends of a text"), [_USER_TURN, _turn("assistant", "\n b \n"), _LATER_TURN]),
    Probe(msg("it strips white space from the ends of a text"), [_turn("system", " S\n"), _USER_TURN]),
    Probe(msg("it treats an empty text differently from others"), [_turn("system", ""), _USER_TURN]),
    Probe(msg("it treats an empty text differently from others"), [_turn("user", "")]),
    Probe(msg("it treats a later system text differently from the first"), [_USER_TURN, _ANSWER_TURN, _turn("system", "later"), _LATER_TURN]),
    Probe(
        msg("it omits the reasoning of earlier answers"),
        [_USER_TURN, _turn("assistant", "<think>\nhm\n</think>\n\nb"), _LATER_TURN],
    ),
    Probe(
        msg("it includes the reasoning of earlier answers"),
        [_USER_TURN, _turn("assistant", "b", reasoning_content="hm", thinking="hm"), _LATER_TURN],
    ),
    Probe(msg("it writes a partial answer differently from a complete one"), [_USER_TURN, _ANSWER_TURN]),
    Probe(msg("it writes a list of tools"), [_USER_TURN], TOOLS),
    Probe(msg("it writes a list of tools"), [_turn("system", "S"), _USER_TURN], TOOLS),
    Probe(msg("it writes tool calls"), [_USER_TURN, _turn("assistant", "", tool_calls=_CALL), _turn("tool", "42", name="look_up")], TOOLS),
    Probe(
        msg("it writes tool calls"),
        [_USER_TURN, _turn("assistant", "", tool_calls=_CALL), _turn("tool", "42"), _turn("assistant", "b"), _LATER_TURN],
    ),
    Probe(msg("it writes tool results in its own way"), [_USER_TURN, _ANSWER_TURN, _turn("tool", "42"), _turn("tool", "43")]),
)  # fmt: skip
