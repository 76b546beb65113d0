"""Conversations on disk survive crashes and are found again."""

import json
import os

import pytest

from finetune_local.chat import history
from finetune_local.data.conversation import Message
from finetune_local.system import paths
from finetune_local.system.errors import SpecError


def spoken(home: paths.Home, *lines: dict[str, object]) -> history.History:
    one = history.new(home, "m")
    for line in lines:
        one.append(line)
    return one


def test_what_was_said_is_read_back_in_order(home: paths.Home) -> None:
    one = spoken(
        home,
        {"role": "system", "content": "简短"},
        {"role": "user", "content": "你好\nline two"},
        {"role": "assistant", "content": "好", "adapter": "诗人"},
    )
    read = history.History(one.path).read()
    assert (read.system, read.answered_by, read.begun["model"]) == ("简短", "诗人", "m")
    assert read.turns == [Message("user", "你好\nline two"), Message("assistant", "好")]


def test_undo_and_clear_are_lines_too_and_nothing_is_rewritten(home: paths.Home) -> None:
    exchange = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    one = spoken(home, *exchange, *exchange, {"undo": "exchange"})
    before = one.path.read_bytes()
    assert len(one.read().turns) == 2
    one.append({"undo": "answer"})
    assert one.read().turns == [Message("user", "a")]
    one.append({"clear": True})
    assert one.read().turns == []
    assert one.path.read_bytes().startswith(before)


def test_a_line_half_written_by_a_crash_costs_only_itself(home: paths.Home) -> None:
    one = spoken(home, {"role": "user", "content": "问题"}, {"role": "assistant", "content": "回答"})
    whole = one.path.read_bytes()
    for cut in range(len(whole) - 2, whole.rindex(b'{"role"'), -7):
        one.path.write_bytes(whole[:cut])
        assert one.read().turns == [Message("user", "问题")]
        one.append({"role": "assistant", "content": "again"})
        assert one.read().turns == [Message("user", "问题"), Message("assistant", "again")]


def test_a_chat_nobody_spoke_in_leaves_no_file(home: paths.Home) -> None:
    history.new(home, "m")
    assert history.every(home) == []
    with pytest.raises(SpecError, match="no conversations yet"):
        history.find(home, "latest")


def test_the_last_conversation_is_the_one_last_spoken_in(home: paths.Home) -> None:
    first, second = (spoken(home, {"role": "user", "content": text}) for text in ("one", "two"))
    assert first.id != second.id
    os.utime(second.path, (1, 1))
    assert history.find(home, "latest").id == first.id
    assert history.find(home, second.id).read().turns[0].content == "two"
    with pytest.raises(SpecError, match="Did you mean"):
        history.find(home, first.id[:-1] + "x")
    told = {"id": first.id, "title": None, "model": "m", "adapter": None, "turns": 1, "first": "one"}
    assert history.summary(first).as_json() == told
    first.append({"role": "assistant", "content": "1", "adapter": "诗人"})
    assert history.summary(first).adapter == "诗人"


def test_the_file_is_json_lines_in_readable_text(home: paths.Home) -> None:
    one = spoken(home, {"role": "user", "content": "你好"})
    lines = one.path.read_text("utf-8").splitlines()
    assert [set(json.loads(line)) >= {key} for line, key in zip(lines, ("chat", "role"), strict=True)] == [True, True]
    assert "你好" in lines[1]
