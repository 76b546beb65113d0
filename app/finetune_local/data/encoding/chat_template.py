"""A model's chat template: messages to text, and the spans of the assistant's answers in it.

Works on text alone with any renderer; needs no `{% generation %}` in the template. tokenizer.py turns the text into ids.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from finetune_local.data.conversation import Message, RowRejected
from finetune_local.system.messages import msg

Renderer = Callable[[Sequence[Message], bool], str]
"""(messages, generation prompt) -> text. Raises RowRejected with the template's own message if it refuses."""

_PROBE = {role: f"probe-{role}-5d1c" for role in ("system", "user", "assistant", "tool")}

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""Used for a tokenizer without a template whose vocabulary has ChatML's two tokens."""

PLAIN = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ '### Assistant:\\n' + message['content'] + eos_token + '\\n\\n' }}"
    "{% elif message['role'] == 'tool' %}{{ '### Result:\\n' + message['content'] + '\\n\\n' }}"
    "{% else %}{{ '### User:\\n' + message['content'] + '\\n\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '### Assistant:\\n' }}{% endif %}"
)
"""Used for any other tokenizer without a template: plain-text headings, and answers that end with the end-of-text token."""


@dataclass(frozen=True)
class Span:
    """Characters [start, end) of an assistant turn, through its end-of-turn token.

    `closed` is False if the template puts no such token after the answer.
    """

    message: int
    start: int
    end: int
    closed: bool


@dataclass(frozen=True)
class Rendered:
    """A rendered chat with the span of every assistant turn, or the reason why the template refuses it."""

    text: str = ""
    spans: tuple[Span, ...] = ()
    refused: str = ""


@dataclass(frozen=True)
class TemplateFacts:
    """Whether a template shows system texts and tool results, and the text it puts after an answer (None: unknown)."""

    knows_system: bool = False
    knows_tool: bool = False
    after_answer: str | None = None


class ChatTemplate:
    """A renderer with missing roles bridged: a system text becomes part of the first user turn, and a tool's result a user turn, if
    the template has no such role.
    """

    def __init__(self, render: Renderer) -> None:
        self._render = render
        self.stops: Collection[str] = ()
        """Texts of the end-of-turn tokens."""
        system, user, assistant, tool = (Message(role, text) for role, text in _PROBE.items())  # type: ignore[arg-type]
        self.knows_system = self._shows("system", [system, user, assistant]) and self._shows("system", [system, user])
        self.knows_tool = self._shows("tool", [user, assistant, tool, assistant])

    def render(self, messages: Sequence[Message], generation_prompt: bool = False) -> str:
        """The rendered chat. Raises RowRejected if the template refuses the messages."""
        return self._render(self._bridged(messages), generation_prompt)

    def after_answer(self) -> str:
        """The text the template puts after an answer."""
        rendered = self._render([Message("user", _PROBE["user"]), Message("assistant", _PROBE["assistant"])], False)
        return rendered.rpartition(_PROBE["assistant"])[2]

    def spans(self, messages: Sequence[Message], generation_prompt: bool = False) -> tuple[str, list[Span]]:
        """The rendered chat and the span of every assistant turn, in order. Raises RowRejected if one cannot be found.

        An answer starts where its prompt ends: the preceding messages rendered with the generation prompt. Templates that render earlier
        turns differently later on (Qwen3 drops their <think> blocks) break this; there the answer is searched for after the earlier turns.
        """
        bridged = self._bridged(messages)
        text = self._render(bridged, generation_prompt)
        # Bridging may drop a leading system message, never one elsewhere: count from the end.
        shift = len(messages) - len(bridged)
        spans: list[Span] = []
        for index, message in enumerate(bridged):
            if message.role == "assistant":
                spans.append(self._span(text, bridged, index, spans, shift))
        return text, spans

    def _span(self, text: str, messages: Sequence[Message], index: int, before: list[Span], shift: int) -> Span:
        cursor = before[-1].end if before else 0
        start = self._prompt_end(text, messages[:index], cursor)
        if start is None:
            start = self._search(text, messages, index, before[-1].message - shift if before else -1, cursor)
        limit = self._turn_end(text, messages, index)
        found = _find(text, messages[index].content, start, limit)
        after = found[1] if found else start
        stops = [(at, at + len(s)) for s in self.stops if (at := text.find(s, after, limit)) >= 0]
        if stops:
            return Span(index + shift, start, min(stops)[1], closed=True)
        if found is None:
            raise _lost(messages, index)
        return Span(index + shift, start, found[1], closed=False)

    def _prompt_end(self, text: str, messages: Sequence[Message], cursor: int) -> int | None:
        """Where the next answer's prompt ends, if the text starts with that prompt."""
        if not messages:
            return None
        try:
            prompt = self._render(messages, True)
        except RowRejected:
            return None  # some templates refuse a beginning that they accept within the whole
        return len(prompt) if len(prompt) >= cursor and text.startswith(prompt) else None

    def _turn_end(self, text: str, messages: Sequence[Message], index: int) -> int:
        """Where this turn's text ends, if it can be determined; else the end of the text."""
        if index + 1 == len(messages):
            return len(text)
        try:
            turn = self._render(messages[: index + 1], False)
        except RowRejected:
            return len(text)
        return len(turn) if text.startswith(turn) else len(text)

    def _search(self, text: str, messages: Sequence[Message], index: int, previous: int, cursor: int) -> int:
        at = cursor
        for message in messages[previous + 1 : index]:
            if found := _find(text, message.content, at, len(text)):
                at = found[1]
        found = _find(text, messages[index].content, at, len(text))
        if found is None:
            raise _lost(messages, index)
        opening = self._opening(messages[:index])
        head = text.rfind(opening, at, found[0]) if opening else -1
        return head + len(opening) if head >= 0 else found[0]

    def _opening(self, messages: Sequence[Message]) -> str:
        r"""The generation prompt alone, such as "<|im_start|>assistant\n"; "" if it cannot be determined."""
        if not messages:
            return ""
        try:
            without, prompt = self._render(messages, False), self._render(messages, True)
        except RowRejected:
            return ""
        return prompt[len(without) :] if prompt.startswith(without) else ""

    def _bridged(self, messages: Sequence[Message]) -> Sequence[Message]:
        if self.knows_system and self.knows_tool:
            return messages
        result = list(messages)
        if not self.knows_tool:
            result = [Message("user", m.content) if m.role == "tool" else m for m in result]
        if not self.knows_system and result and result[0].role == "system":
            if len(result) > 1 and result[1].role == "user":
                result[:2] = [Message("user", f"{result[0].content}\n\n{result[1].content}")]
            else:
                result[0] = Message("user", result[0].content)
        return result

    def _shows(self, role: str, messages: Sequence[Message]) -> bool:
        try:
            return _PROBE[role] in self._render(messages, messages[-1].role != "assistant")
        except RowRejected:
            return False


def _find(text: str, content: str, start: int, end: int) -> tuple[int, int] | None:
    """The position of a message's content: verbatim, stripped, or without its <think> block; templates do all three."""
    for form in dict.fromkeys((content, content.strip(), content.rpartition("</think>")[2].strip())):
        if form and (at := text.find(form, start, end)) >= 0:
            return at, at + len(form)
    return None


def _lost(messages: Sequence[Message], index: int) -> RowRejected:
    number = sum(m.role == "assistant" for m in messages[: index + 1])
    return RowRejected(
        msg(
            "the model's chat template leaves out or rewrites answer {number}, so nothing could be learned from it.",
            number=number,
        )
    )
