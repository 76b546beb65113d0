"""Chat templates are foreign programs: whatever one does, the user reads a sentence, soon."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import date
from typing import Any

import pytest

from finetune_local.data.conversation import Message, RowRejected
from finetune_local.data.encoding import guarded_template
from finetune_local.data.encoding.guarded_template import GuardedTemplate
from finetune_local.system.untrusted.guarded import Guarded, Limits

CHAT = [Message("user", "question"), Message("assistant", "answer")]
GOOD = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"


@pytest.fixture(scope="module")
def child() -> Iterator[Guarded]:
    """A process for all tests, with a limit that they can wait for."""
    child = Guarded("finetune_local.data.encoding.rendering", Limits(0.5, 400 * 2**20))
    yield child
    child.close()


@pytest.fixture(autouse=True)
def _quick(child: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarded_template, "_child", child)
    monkeypatch.setattr(guarded_template, "SECONDS", 0.5)


@pytest.mark.parametrize(
    "text",
    [
        "{{ 1 // 0 }}",
        "{{ range(10**9) | list | length }}",
        "{{ 10.0 ** 400 }}",
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "{{ messages.missing.more }}",
        "{{ messages[7].content }}",
        "{{ undefined_function() }}",
        "{{ [1] | map('nosuchfilter') | list }}",
        "{{ messages | sum }}",
        "{{ raise_exception('system messages are not for me') }}",
        "{{ raise_exception(messages) }}",
        "{{ strftime_now(3) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ namespace(_x=1) }}",
        "{% include 'other' %}",
        "{% for m in messages %}",
        "{{ unclosed",
        "{% generation %}",
        "{{ '\ud800' }}{{ 1 // 0 }}",
        "{% set messages = 3 %}{{ messages.append(1) }}",
        "{{ '%s %s' | format(1) }}",
        "{{ cycler() }}",
    ],
)
def test_what_a_template_raises_is_a_sentence(text: str) -> None:
    template = GuardedTemplate(text, {"eos_token": "</s>"})
    with pytest.raises(RowRejected, match="the model's chat template") as raised:
        template.spans(CHAT)
    assert "\n" not in str(raised.value)
    assert template.after_answer() is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}x",
        "{{ 2 ** (2 ** 33) }}",
        "{{ 'a' * 10**9 }}{{ 'a' * 10**9 }}",
        "{{ messages | tojson(indent=10**9) }}",
        "{{ 'x' | center(10**10) }}",
        "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
        "{{ lipsum(n=10**9) }}",
        "{{ '%10000000000d' % 1 }}",
    ],
)
def test_what_never_ends_or_takes_all_memory_ends_soon(text: str) -> None:
    began = time.monotonic()
    template = GuardedTemplate(text, {})
    assert template.after_answer() is None
    for _ in range(3):
        with pytest.raises(RowRejected, match="the model's chat template"):
            template.spans(CHAT)
    assert time.monotonic() - began < 30
    assert GuardedTemplate(GOOD, {"eos_token": "</s>"}).render(CHAT) == "[user]question</s>[assistant]answer</s>"


@pytest.mark.slow
def test_a_template_that_fails_with_some_chats_is_used_for_the_others_and_given_up_after_three(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = GOOD + "{% if 'slow' in messages[0].content %}{% for i in range(99999) %}{% for j in range(99999) %}"
    template = GuardedTemplate(text + "{% endfor %}{% endfor %}{% endif %}", {"eos_token": "</s>"})
    template.stops = ["</s>"]
    slow, quick = [Message("user", "slow"), CHAT[1]], CHAT
    assert len(template.spans(quick)[1]) == 1
    template.ahead([quick, slow, quick])  # the whole request ends; each is tried again by itself
    with pytest.raises(RowRejected, match="did not finish"):
        template.spans(slow)
    assert len(template.spans(quick)[1]) == 1
    for _ in range(2):
        with pytest.raises(RowRejected, match="did not finish"):
            template.spans(slow)
    monkeypatch.setattr(guarded_template, "_child", None)  # asked no more: a million rows are not waited for
    with pytest.raises(RowRejected, match="did not finish"):
        template.spans(quick)


@pytest.mark.slow
def test_a_long_chat_has_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is rendered for each of its answers: three of a thousand messages are no reason to give a template up."""
    given: list[float] = []

    class Child:
        limits = Limits(2.0, 2**30)

        def ask(self, request: object, setup: object, *, answering: float) -> dict[str, object]:
            given.append(answering)
            return {"text": "", "spans": [], "found": []}

    monkeypatch.setattr(guarded_template, "_child", Child())
    template = GuardedTemplate(GOOD, {})
    for count in (1, 500, 10**5):
        template.spans(CHAT * count)
    assert given == [2.04, 22.0, 60.0]


def test_what_is_rendered_ahead_is_what_is_rendered() -> None:
    template = GuardedTemplate(GOOD, {"eos_token": "</s>"})
    template.stops = ["</s>"]
    chats: Sequence[Sequence[Message]] = [
        CHAT,
        [*CHAT, Message("user", "再问"), Message("assistant", "再答")],
        [Message("assistant", "\ud800")],
    ]
    one_by_one = [template.spans(chat) for chat in chats]
    template.ahead(chats)
    assert [template.spans(chat) for chat in chats] == one_by_one
    assert [template.spans(chat) for chat in chats] == one_by_one, "and again, as each is handed out once"


def test_a_chat_with_tools_and_thoughts_can_be_rendered() -> None:
    text = '{{ tools | tojson }}{% for m in messages %}{{ m.reasoning_content }}|{{ m.content }}|{{ m.tool_calls | tojson }}{% endfor %}{{ strftime_now("%d") }}'
    chat = [{"role": "assistant", "content": "c", "thinking": "t", "tool_calls": [{"id": 1}], "name": None}]
    template = GuardedTemplate(text, {})
    told = template.render_chat(chat, tools=[{"name": "é"}], day=date(2021, 3, 4))
    assert told == '[{"name": "é"}]t|c|[{"id": 1}]2021-03-04'


@pytest.mark.parametrize(
    ("reply", "known"),
    [
        ({"knows_system": True, "knows_tool": True, "after_answer": "</s>"}, (True, True, "</s>")),
        ({"knows_system": True, "knows_tool": True, "after_answer": "</s>", "more": 1}, (True, True, "</s>")),
        ({"knows_system": True, "knows_tool": True, "after_answer": None}, (True, True, None)),
        ({"knows_system": True}, (False, False, None)),
        ({"knows_system": "yes", "knows_tool": True, "after_answer": None}, (False, False, None)),
        ({"knows_system": True, "knows_tool": True, "after_answer": ["</s>"]}, (False, False, None)),
        ({"text": "of another request"}, (False, False, None)),
    ],
)
def test_facts_of_a_child_that_was_tampered_with_are_not_believed(
    reply: dict[str, Any], known: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Child:
        limits = Limits(2.0, 2**30)

        def ask(self, request: object, setup: object, *, answering: float) -> dict[str, Any]:
            return reply

    monkeypatch.setattr(guarded_template, "_child", Child())
    template = GuardedTemplate(GOOD, {})
    assert (template.knows_system, template.knows_tool, template.after_answer()) == known
