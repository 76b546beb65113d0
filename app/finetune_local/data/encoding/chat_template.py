"""A model's chat template: messages to text, and where in that text the assistant's answers lie.

Works on text alone, with any renderer; needs no `{% generation %}` in the template. Token ids are tokenizer.py's business.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from finetune_local.data.conversation import Message, RowRejected
from finetune_local.system.messages import msg

Renderer = Callable[[Sequence[Message], bool], str]
"""(messages, generation prompt) -> text. Raises RowRejected with the template's own words where it refuses."""

_PROBE = {role: f"probe-{role}-5d1c" for role in ("system", "user", "assistant", "tool")}

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""For a tokenizer without a template whose vocabulary has ChatML's two tokens."""

PLAIN = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ '### Assistant:\\n' + message['content'] + eos_token + '\\n\\n' }}"
    "{% elif message['role'] == 'tool' %}{{ '### Result:\\n' + message['content'] + '\\n\\n' }}"
    "{% else %}{{ '### User:\\n' + message['content'] + '\\n\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '### Assistant:\\n' }}{% endif %}"
)
"""For any other tokenizer without a template: headings in plain text, answers ended by the end-of-text token."""


@dataclass(frozen=True)
class Span:
    """Characters [start, end) of an assistant turn: what the model has to say, through its end-of-turn token.

    `closed` is False where the template puts no such token after the answer.
    """

    message: int
    start: int
    end: int
    closed: bool


class ChatTemplate:
    """A renderer with its gaps bridged: a system text goes into the first user turn and a tool's result becomes a user
    turn where the template knows no such role."""

    def __init__(self, render: Renderer) -> None:
        self._render = render
        self.stops: Collection[str] = ()
        """Texts of the tokens that end a turn."""
        system, user, assistant, tool = (Message(role, text) for role, text in _PROBE.items())  # type: ignore[arg-type]
        self.knows_system = self._shows("system", [system, user, assistant]) and self._shows("system", [system, user])
        self.knows_tool = self._shows("tool", [user, assistant, tool, assistant])

    def render(self, messages: Sequence[Message], generation_prompt: bool = False) -> str:
        """The whole text. Raises RowRejected where the template refuses the messages."""
        return self._render(self._bridged(messages), generation_prompt)

    def after_answer(self) -> str:
        """The text that the template puts behind an answer."""
        rendered = self._render([Message("user", _PROBE["user"]), Message("assistant", _PROBE["assistant"])], False)
        return rendered.rpartition(_PROBE["assistant"])[2]

    def spans(self, messages: Sequence[Message], generation_prompt: bool = False) -> tuple[str, list[Span]]:
        """The text and the span of every assistant turn in it, in order. Raises RowRejected where one cannot be found.

        An answer begins where the prompt for it ends: the text of the messages before it with the generation prompt. A
        template that shows earlier turns differently later on (Qwen3 drops their <think> blocks) breaks that; then the
        answer is searched for, after the turns before it.
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
        """Where the prompt for the next answer ends, if the text begins with that prompt."""
        if not messages:
            return None
        try:
            prompt = self._render(messages, True)
        except RowRejected:
            return None  # some templates refuse a beginning that they accept within the whole
        return len(prompt) if len(prompt) >= cursor and text.startswith(prompt) else None

    def _turn_end(self, text: str, messages: Sequence[Message], index: int) -> int:
        """Where this turn's text ends, as far as can be told; the whole text's end otherwise."""
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
        """The generation prompt alone, such as "<|im_start|>assistant\\n"; "" where it cannot be told."""
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
    """Where a message's content stands, as it is, trimmed, or without its <think> block; templates do all three."""
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
