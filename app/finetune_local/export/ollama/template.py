"""A chat template for Ollama, which reads Go's templates instead of Jinja's: worked out from how the model's own one renders.

What stands before and after each kind of turn is read off a few renderings. The template made of it is used only where it is
proven: Ollama's rendering of it (ollama_render.py) must be the very text of the model's own template for every conversation of
ollama_chats.py, on two different days. So ChatML and its like are repeated with certainty. What a template of Ollama's cannot do
is not attempted (it has no trim, no search in a text, no tool schemas as the model writes them): then there is none, with the
reason, and Ollama renders the model's own template, which is in the GGUF.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Protocol

from finetune_local.data.conversation import Message, RowRejected
from finetune_local.export.ollama import render as ollama_render
from finetune_local.export.ollama.chats import DAYS, PROBES, Chat, Probe
from finetune_local.system.messages import msg

Render = Callable[[Sequence[Message], bool], str]
"""A conversation as the app asks with it, with the beginning of its next answer or without. Raises RowRejected."""

_SYSTEM, _ASKED, _ANSWER, _RESULT, _AGAIN = "sys-7c2e", "ask-41d9", "say-b60f", "got-93aa", "ask-e835"


class Template(Protocol):
    """The model's own template, with the beginning of the next answer, as transformers renders it on a day."""

    def __call__(self, chat: Chat, tools: Sequence[Mapping[str, Any]], day: date, /) -> str:
        """Raises RowRejected where the template refuses the conversation."""
        ...


class NotRecognised(Exception):
    """The template writes turns in a way that cannot be repeated with certainty; the text says what."""


@dataclass(frozen=True)
class Turns:
    """What stands before and after the text of each kind of turn."""

    start: str
    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]
    tool: tuple[str, str] | None
    """None where the template knows no results of tools."""
    answer: str
    """Behind the last turn: the beginning of the answer."""
    default: str | None
    """The system text that the template puts where none is given; Ollama's SYSTEM does the same."""

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
        """All that is written literally."""
        pairs = (self.system, self.user, self.assistant, self.tool or ("", ""))
        return (self.start, *(piece for pair in pairs for piece in pair), self.answer)


def turns_of(render: Render, template: Template, bos: str, bos_is_added: bool) -> Turns:
    """The turns of a template, proven. `render` is how the app asks, `template` the model's own one; `bos` is the text of the token
    that begins every prompt ("" for none), `bos_is_added` whether whatever runs the model puts it there itself.

    Raises NotRecognised.
    """
    try:
        found = _found(render, template, bos, bos_is_added)
    except RowRejected as error:
        raise NotRecognised(msg("it refuses an ordinary conversation: {error}", error=error)) from None
    if any("{{" in piece or "}}" in piece for piece in found.pieces()):
        raise NotRecognised(msg("it writes braces, which mean something else to Ollama"))
    for probe in PROBES:
        _prove(found, probe, render, template, bos if bos_is_added else "")
    return found


def _prove(found: Turns, probe: Probe, render: Render, template: Template, added: str) -> None:
    """Raise NotRecognised where Ollama would give the model another text than its own template does."""
    own = _own(probe, DAYS[0], render, template)
    if own != _own(probe, DAYS[1], render, template):
        raise NotRecognised(msg("it writes the day's date"))
    if own is not None and ollama_render.render(found.go(), probe.chat, found.default) != own.removeprefix(added):
        raise NotRecognised(probe.shows)


def _own(probe: Probe, day: date, render: Render, template: Template) -> str | None:
    """The model's own rendering; where its template refuses the conversation, as the app asks instead; None where nobody can."""
    try:
        return template(probe.chat, probe.tools, day)
    except RowRejected:
        pass
    try:
        return render([Message(turn["role"], turn["content"]) for turn in probe.chat], True)
    except RowRejected:
        return None


def _found(render: Render, template: Template, bos: str, bos_is_added: bool) -> Turns:
    asked, answer, again = Message("user", _ASKED), Message("assistant", _ANSWER), Message("user", _AGAIN)
    first, end = _cut(render([asked], True), _ASKED)
    before, between, after, last = _cut(render([asked, answer, again], True), _ASKED, _ANSWER, _AGAIN)
    opened, joined, closed = _cut(render([Message("system", _SYSTEM), asked], True), _SYSTEM, _ASKED)
    _, asked_end = _cut(render([asked], False), _ASKED)
    if before != first or last != end or closed != end:
        raise NotRecognised(msg("it writes the first or the last turn otherwise than others"))
    if not (between.startswith(asked_end) and end.startswith(asked_end)):
        asked_end = _common(between, end)
    start = ""
    bare = first.removeprefix(bos)
    if bare != first and opened.startswith(bos) and (bos_is_added or after.endswith(bare) > after.endswith(first)):
        first, opened, start = bare, opened.removeprefix(bos), "" if bos_is_added else bos
    default, head = None, first
    if not after.endswith(first):
        if not (first.startswith(opened) and first.endswith(joined) and len(first) > len(opened) + len(joined)):
            raise NotRecognised(msg("it writes the first turn otherwise than later ones"))
        default, head = first[len(opened) : len(first) - len(joined)], after.removeprefix(asked_end)
        if not joined.endswith(head):
            head = _common(after[::-1], joined[::-1])[::-1]
    if not joined.endswith(head):
        raise NotRecognised(msg("it puts the system text into a user's turn"))
    spoken = between.removeprefix(asked_end), after.removesuffix(head)
    return Turns(
        start,
        (opened, joined.removesuffix(head)),
        (head, asked_end),
        spoken,
        _tool(render, template, spoken[1], head),
        end.removeprefix(asked_end),
        default,
    )


def _tool(render: Render, template: Template, answered: str, head: str) -> tuple[str, str] | None:
    """What stands around a tool's result between an answer, which ends with `answered`, and a question, which begins with `head`."""
    roles = ("user", _ASKED), ("assistant", _ANSWER), ("tool", _RESULT), ("user", _AGAIN)
    chat = [{"role": role, "content": content} for role, content in roles]
    try:
        text = _own(Probe("", chat), DAYS[0], render, template)
        _, _, before, after, _ = _cut(text or "", _ASKED, _ANSWER, _RESULT, _AGAIN)
    except NotRecognised:
        return None
    return before.removeprefix(answered), after.removesuffix(head)


def _cut(text: str, *marks: str) -> list[str]:
    """What stands before, between and behind the marks, each of which stands in the text once."""
    parts = []
    for mark in marks:
        if text.count(mark) != 1:
            raise NotRecognised(msg("it leaves out or repeats what is said"))
        before, _, text = text.partition(mark)
        parts.append(before)
    return [*parts, text]


def _common(one: str, other: str) -> str:
    """What both begin with."""
    length = next((i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
    return one[:length] if length is not None else min(one, other, key=len)
