from __future__ import annotations

from typing import Any

import pytest

from finetune_local.data.conversation import Conversation, Message, RowRejected, Source
from finetune_local.data.formats import choose, format_named, formats, read_row, recognise, unknown_row
from finetune_local.system.errors import DataError

SOURCE = Source("f", 1)
Q, A = Message("user", "问"), Message("assistant", "答")

GOOD: list[tuple[str, dict[str, Any], tuple[Message, ...]]] = [
    ("openai", {"messages": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]}, (Q, A)),
    (
        "openai",
        {
            "messages": [
                {"role": "developer", "content": "be"},
                {"role": "user", "content": [{"type": "text", "text": "问"}]},
                {"role": "assistant", "content": [{"type": "text", "value": "答"}], "loss_weight": 0.0},
                {"role": "user", "content": "2", "weight": 0},
                {"role": "assistant", "content": "3", "weight": 1},
            ]
        },
        (
            Message("system", "be"),
            Q,
            Message("assistant", "答", train=False),
            Message("user", "2", train=False),
            Message("assistant", "3"),
        ),
    ),
    (
        "openai",
        {
            "messages": [
                {"role": "user", "content": "问"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"id": "1", "type": "function", "function": {"name": "看", "arguments": '{"x": 1}'}},
                        {"id": "2", "type": "function", "function": {"name": "g", "arguments": {"y": "晴"}}},
                    ],
                },
                {"role": "tool", "tool_call_id": "1", "content": "ok"},
                {"role": "assistant", "content": "答"},
            ]
        },
        (
            Q,
            Message("assistant", '{"name": "看", "arguments": {"x": 1}}\n{"name": "g", "arguments": {"y": "晴"}}'),
            Message("tool", "ok"),
            A,
        ),
    ),
    ("openai", {"messages": '[{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]'}, (Q, A)),
    (
        "sharegpt",
        {
            "conversations": [
                {"from": "human", "value": "问"},
                {"from": "function_call", "value": "{}"},
                {"from": "observation", "value": "r"},
                {"from": "gpt", "value": "答"},
            ],
            "system": "be",
            "tools": "[]",
        },
        (Message("system", "be"), Q, Message("assistant", "{}"), Message("tool", "r"), A),
    ),
    (
        "sharegpt",
        {
            "conversations": [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}],
            "tools": '[{"name": "f"}]',
        },
        (Message("system", 'You can call these functions:\n[{"name": "f"}]'), Q, A),
    ),
    (
        "sharegpt",
        {"conversations": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]},
        (Q, A),
    ),
    ("alpaca", {"instruction": "问", "input": "", "output": "答"}, (Q, A)),
    ("alpaca", {"instruction": "问", "input": "x", "output": "答"}, (Message("user", "问\n\nx"), A)),
    (
        "alpaca",
        {"instruction": "问", "output": "答", "system": "be", "history": [["a", "b"]]},
        (Message("system", "be"), Message("user", "a"), Message("assistant", "b"), Q, A),
    ),
    ("prompt_completion", {"prompt": "问", "completion": "答"}, (Q, A)),
    (
        "prompt_completion",
        {"prompt": "A: ", "completion": " 42 "},
        (Message("user", "A: "), Message("assistant", " 42 ")),
    ),
    ("prompt_completion", {"question": "问", "answer": 42}, (Q, Message("assistant", "42"))),
    ("prompt_completion", {"prompt": "问", "response": "答", "id": 3}, (Q, A)),
    ("prompt_completion", {"input": "问", "output": "答"}, (Q, A)),
    (
        "prompt_completion",
        {
            "prompt": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"},
                {"role": "user", "content": "c"},
            ],
            "completion": [{"role": "assistant", "content": "答"}],
        },
        (Message("user", "a"), Message("assistant", "b", train=False), Message("user", "c"), A),
    ),
]

BAD: list[tuple[str, dict[str, Any], str]] = [
    ("openai", {"messages": [{"role": "assitant", "content": "x"}]}, "role 'assitant'. Did you mean 'assistant'?"),
    ("openai", {"messages": []}, "'messages' is empty"),
    ("openai", {"messages": {"role": "user"}}, "'messages' is an object, expected a list"),
    ("openai", {"messages": "hello"}, "not JSON"),
    ("openai", {"messages": ["hello"]}, "turn 1 of 'messages' is a text"),
    ("openai", {"messages": [{"content": "x"}]}, "has no 'role'"),
    ("openai", {"messages": [{"role": "user", "contents": "x"}]}, "Rename 'contents' to 'content'"),
    ("openai", {"messages": [{"role": "assistant", "content": " "}]}, "turn 1 of 'messages' (assistant) is empty"),
    ("openai", {"messages": [{"role": "assistant", "content": None}]}, "has no content"),
    ("openai", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "type 'image_url'"),
    ("openai", {"messages": [{"role": "user", "content": "half \ud83d"}]}, "half a character"),
    ("openai", {"messages": [{"role": "assistant", "content": "x", "weight": 0.5}]}, "nothing in between"),
    ("openai", {"messages": [{"role": "assistant", "content": "x", "weight": "1"}]}, "weight '1'"),
    (
        "openai",
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
        "calls 'f' with arguments that should be JSON",
    ),
    ("openai", {"messages": [{"role": "assistant", "tool_calls": [{"id": 1}]}]}, "without a function name"),
    ("sharegpt", {"conversations": [{"from": "humn", "value": "x"}]}, "Did you mean 'human'?"),
    ("alpaca", {"instruction": "", "output": "x"}, "'instruction' is empty"),
    ("alpaca", {"instruction": "x", "output": ""}, "'output' is empty"),
    ("alpaca", {"instruction": "x", "output": "y", "history": [["a"]]}, "item 1 of 'history'"),
    ("prompt_completion", {"prompt": "x", "completion": None}, "'completion' is null"),
    ("prompt_completion", {"question": "x", "query": "y", "answer": "z"}, "both 'question' and 'query'"),
    ("text", {"text": ""}, "'text' is empty"),
    ("pairs", {"prompt": "x", "chosen": "a", "rejected": "a"}, "are the same"),
    ("preference", {"messages": [], "label": False}, "--format openai"),
]


@pytest.mark.parametrize(("key", "row", "messages"), GOOD)
def test_rows_are_recognised_and_read(key: str, row: dict[str, Any], messages: tuple[Message, ...]) -> None:
    found = recognise(row)
    assert found is not None
    assert found.key == key
    assert found.read(row, SOURCE) == Conversation(messages, SOURCE)


def test_a_text_is_no_chat() -> None:
    assert formats()["text"].read({"text": "文"}, SOURCE) == Conversation((), SOURCE, "文")


@pytest.mark.parametrize(("key", "row", "reason"), BAD)
def test_bad_rows_are_refused_with_the_reason(key: str, row: dict[str, Any], reason: str) -> None:
    found = recognise(row)
    assert found is not None
    assert found.key == key
    with pytest.raises(RowRejected) as caught:
        found.read(row, SOURCE)
    assert reason in str(caught.value)


def test_the_format_of_most_rows_is_chosen() -> None:
    rows = [row for _, row, _ in GOOD[:3]] + [{"text": "x"}, {"other": 1}]
    found = choose(rows)
    assert found is not None
    assert found.key == "openai"
    assert choose([{"other": 1}]) is None


def test_a_row_of_another_format_is_read_by_it_unless_one_is_forced() -> None:
    row = {"instruction": "问", "output": "答"}
    assert read_row(row, SOURCE, formats()["openai"], forced=False).messages == (Q, A)
    with pytest.raises(RowRejected, match="'messages' is null"):
        read_row(row, SOURCE, formats()["openai"], forced=True)


def test_preference_rows_within_chat_are_not_learned_unless_forced() -> None:
    row = {**GOOD[0][1], "label": False}
    with pytest.raises(RowRejected, match="preference"):
        read_row(row, SOURCE, formats()["openai"], forced=False)
    assert read_row(row, SOURCE, formats()["openai"], forced=True).messages == (Q, A)


def test_unknown_rows_get_a_hint() -> None:
    with pytest.raises(RowRejected, match=r"'mesages'.*Did you mean 'messages'\?"):
        read_row({"mesages": []}, SOURCE, None, forced=False)


def test_a_mistyped_format_gets_a_hint() -> None:
    with pytest.raises(DataError, match="Did you mean 'sharegpt'"):
        format_named("share-gpt")
    assert format_named("prompt-completion").key == "prompt_completion"


@pytest.mark.parametrize("key", [k for k in formats() if k != "preference"])
def test_every_format_has_an_example_and_lists_its_keys(key: str) -> None:
    one = formats()[key]
    assert one.title
    assert one.example.startswith("{")
    assert one.keys


ASKED = Message("user", "q")
GOOD_ANSWER, BAD_ANSWER = Message("assistant", "good"), Message("assistant", "bad")
ASK = {"role": "user", "content": "q"}
GOOD_TURN, BAD_TURN = {"role": "assistant", "content": "good"}, {"role": "assistant", "content": "bad"}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"prompt": [ASK], "chosen": [GOOD_TURN], "rejected": [BAD_TURN]},
        {"prompt": "q", "chosen": [ASK, GOOD_TURN], "rejected": [ASK, BAD_TURN]},
        {"chosen": [ASK, GOOD_TURN], "rejected": [ASK, BAD_TURN]},
        {"messages": [ASK], "chosen": GOOD_TURN, "rejected": BAD_TURN},
        {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "good"},
         "rejected": {"from": "gpt", "value": "bad"}},
        {"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"},
    ],
)  # fmt: skip
def test_pairs_come_in_many_forms(row: dict[str, Any]) -> None:
    found = recognise(row)
    assert found is not None and found.key == "pairs"
    assert found.read(row, SOURCE) == Conversation((ASKED, GOOD_ANSWER), SOURCE, rejected=BAD_ANSWER)


def test_answers_before_the_last_are_context() -> None:
    row = {"prompt": [ASK, GOOD_TURN, ASK], "chosen": "good", "rejected": "bad", "system": "s"}
    read = formats()["pairs"].read(row, SOURCE)
    assert [(m.role, m.train) for m in read.messages] == [
        ("system", True), ("user", True), ("assistant", False), ("user", True), ("assistant", True),
    ]  # fmt: skip
    with pytest.raises(RowRejected, match="share the prompt"):
        formats()["pairs"].read(
            {"chosen": [ASK, GOOD_TURN], "rejected": [{**ASK, "content": "other"}, BAD_TURN]}, SOURCE
        )


def test_a_key_that_is_right_is_not_suggested() -> None:
    assert "Did you mean" not in unknown_row({"prompt": "a", "chosen": "b"})
    assert "Did you mean 'rejected'?" in unknown_row({"prompt": "a", "chosen": "b", "rejectd": "c"})
