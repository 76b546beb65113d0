"""A chat template for Ollama, which reads Go's templates instead of Jinja's: worked out from how the model's own one renders.

What stands before and after each kind of turn is read off a few renderings. It is used only where the pieces, put together as
Ollama puts them together, give the very text of the model's own template for a list of conversations: so ChatML, Llama 3,
Gemma, Mistral and their like are recognised with certainty, and whatever writes turns less regularly is not guessed.
Ollama's side: https://github.com/ollama/ollama/blob/main/docs/template.mdx
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from finetune_local.data.conversation import Message, Role, RowRejected

Render = Callable[[Sequence[Message], bool], str]
"""A conversation as text, with the beginning of its next answer or without. Raises RowRejected where the template refuses it."""

_SYSTEM, _ASKED, _ANSWER, _AGAIN = "sys-7c2e", "ask-41d9", "say-b60f", "ask-e835"
_TEXTS: Sequence[tuple[Role, str]] = (
    ("user", "What is {{ this }}?\n\nTwo lines, please."),
    ("assistant", 'A "quoted" word, 和中文。'),
    ("user", "再问一次：1 + 1 = ?"),
    ("assistant", "2"),
    ("user", "Thanks <b>!</b>"),
)
_RULES = "You are terse.\nAnswer in one line."


class NotRecognised(Exception):
    """The template writes turns in a way that cannot be repeated with certainty; the text says what."""


@dataclass(frozen=True)
class Turns:
    """What stands before and after the text of each kind of turn."""

    start: str
    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]
    answer: str
    """Behind the last turn: the beginning of the answer."""
    merged: bool
    """A system text opens the first user turn, instead of being a turn of its own."""
    default: str | None
    """The system text that the template puts where none is given."""

    def rendered(self, messages: Sequence[Message]) -> str:
        """As Ollama renders go() with the default as the model's system text."""
        if self.default is not None and messages[0].role != "system":
            messages = [Message("system", self.default), *messages]
        parts = [self.start]
        for number, message in enumerate(messages):
            before, after = {"system": self.system, "user": self.user}.get(message.role, self.assistant)
            if self.merged and number == 1 and messages[0].role == "system":
                before = ""
            parts += [before, message.content, after]
        return "".join([*parts, self.answer])

    def go(self) -> str:
        """The Go template."""
        opening = self.user[0]
        if self.merged and opening:
            opening = "{{ if not (and $.System (eq $i 1)) }}" + opening + "{{ end }}"
        return (
            f"{self.start}{{{{ range $i, $message := .Messages }}}}"
            f'{{{{ if eq .Role "system" }}}}{self.system[0]}{{{{ .Content }}}}{self.system[1]}'
            f'{{{{ else if eq .Role "user" }}}}{opening}{{{{ .Content }}}}{self.user[1]}'
            f'{{{{ else if eq .Role "assistant" }}}}{self.assistant[0]}{{{{ .Content }}}}{self.assistant[1]}'
            f"{{{{ end }}}}{{{{ end }}}}{self.answer}"
        )


def turns_of(render: Render, bos: str, bos_is_added: bool) -> Turns:
    """The turns of a template. `bos` is the text of the token that begins every prompt ("" for none), `bos_is_added` whether
    whatever runs the model puts it there itself. Raises NotRecognised.
    """
    try:
        found = _found(render, bos, bos_is_added)
        for conversation in _conversations():
            own = render(conversation, True)
            if found.rendered(conversation) != (own.removeprefix(bos) if bos_is_added else own):
                raise NotRecognised("it writes some turns otherwise than others")
    except RowRejected as error:
        raise NotRecognised(f"it refuses an ordinary conversation: {error}") from None
    if any(
        "{{" in piece or "}}" in piece
        for piece in (found.start, *found.system, *found.user, *found.assistant, found.answer)
    ):
        raise NotRecognised("it writes braces, which mean something else to Ollama")
    return found


def _found(render: Render, bos: str, bos_is_added: bool) -> Turns:
    asked, answer, again = Message("user", _ASKED), Message("assistant", _ANSWER), Message("user", _AGAIN)
    first, end = _cut(render([asked], True), _ASKED)
    before, between, after, last = _cut(render([asked, answer, again], True), _ASKED, _ANSWER, _AGAIN)
    opened, joined, closed = _cut(render([Message("system", _SYSTEM), asked], True), _SYSTEM, _ASKED)
    _, asked_end = _cut(render([asked], False), _ASKED)
    if before != first or last != end or closed != end:
        raise NotRecognised("it writes the first or the last turn otherwise than others")
    if not (between.startswith(asked_end) and end.startswith(asked_end)):
        asked_end = _common(between, end)
    start = ""
    bare = first.removeprefix(bos)
    if bare != first and opened.startswith(bos) and (bos_is_added or after.endswith(bare) > after.endswith(first)):
        first, opened, start = bare, opened.removeprefix(bos), "" if bos_is_added else bos
    default, head = None, first
    if not after.endswith(first):
        if not (first.startswith(opened) and first.endswith(joined) and len(first) > len(opened) + len(joined)):
            raise NotRecognised("it writes the first turn otherwise than later ones")
        default, head = first[len(opened) : len(first) - len(joined)], after.removeprefix(asked_end)
        if not joined.endswith(head):
            head = _common(after[::-1], joined[::-1])[::-1]
    merged = not joined.endswith(head)
    return Turns(
        start,
        (opened, joined if merged else joined.removesuffix(head)),
        (head, asked_end),
        (between.removeprefix(asked_end), after.removesuffix(head)),
        end.removeprefix(asked_end),
        merged,
        default,
    )


def _cut(text: str, *marks: str) -> list[str]:
    """What stands before, between and behind the marks, each of which stands in the text once."""
    parts = []
    for mark in marks:
        if text.count(mark) != 1:
            raise NotRecognised("it leaves out or repeats what is said")
        before, _, text = text.partition(mark)
        parts.append(before)
    return [*parts, text]


def _common(one: str, other: str) -> str:
    """What both begin with."""
    length = next((i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
    return one[:length] if length is not None else min(one, other, key=len)


def _conversations() -> Iterator[list[Message]]:
    said = [Message(role, text) for role, text in _TEXTS]
    for length in (1, 3, 5):
        yield said[:length]
        yield [Message("system", _RULES), *said[:length]]
