"""The search for answers, on renderers written for one awkward habit each."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from finetune_local.data.conversation import Message, RowRejected
from finetune_local.data.encoding.chat_template import ChatTemplate, Renderer

CHAT = [Message("user", "q1"), Message("assistant", "a1"), Message("user", "q2"), Message("assistant", "a2")]


def answers(render: Renderer, messages: Sequence[Message]) -> list[str]:
    template = ChatTemplate(render)
    template.stops = ["<end>"]
    text, spans = template.spans(messages)
    assert [messages[s.message].role for s in spans] == ["assistant"] * len(spans)
    return [text[s.start : s.end] for s in spans]


def plain(messages: Sequence[Message], prompt: bool) -> str:
    return "".join(f"[{m.role}]{m.content}<end>\n" for m in messages) + ("[assistant]" if prompt else "")


def counting(messages: Sequence[Message], prompt: bool) -> str:
    """Begins with the number of messages, so that no prompt is a beginning of the whole; answers get a think block."""
    shown = "".join(
        f"[{m.role}]{'<think></think>' if m.role == 'assistant' else ''}{m.content}<end>\n" for m in messages
    )
    return f"{len(messages)}\n{shown}" + ("[assistant]" if prompt else "")


def open_ended(messages: Sequence[Message], prompt: bool) -> str:
    return "".join(f"{m.role}: {m.content}\n" for m in messages) + ("assistant: " if prompt else "")


def test_a_searched_answer_begins_after_the_generation_prompt() -> None:
    assert answers(counting, CHAT) == ["<think></think>a1<end>", "<think></think>a2<end>"]


def test_a_stop_text_within_an_answer_does_not_end_it() -> None:
    told = [Message("user", "q"), Message("assistant", "write <end> at the end")]
    assert answers(plain, told) == ["write <end> at the end<end>"]
    assert answers(counting, told) == ["<think></think>write <end> at the end<end>"]


def test_a_stop_text_in_the_next_question_does_not_belong_to_the_answer() -> None:
    told = [CHAT[0], CHAT[1], Message("user", "what is <end>?"), CHAT[3]]
    assert answers(open_ended, told) == ["a1", "a2"]


def test_a_system_text_that_disappears_is_put_into_the_question() -> None:
    def forgetful(messages: Sequence[Message], prompt: bool) -> str:
        return plain([m for m in messages if m.role != "system"], prompt)

    told = [Message("system", "rules"), *CHAT]
    assert answers(forgetful, told) == ["a1<end>", "a2<end>"]
    assert "[user]rules\n\nq1" in ChatTemplate(forgetful).render(told)


def test_an_answer_that_is_rewritten_is_refused() -> None:
    def shouting(messages: Sequence[Message], prompt: bool) -> str:
        return counting([Message(m.role, m.content.upper()) for m in messages], prompt)

    with pytest.raises(RowRejected, match="answer 1"):
        answers(shouting, CHAT)
