"""The list of conversations: newest first, searched, renamed, thrown away and taken back."""

from __future__ import annotations

import os

import pytest

from finetune_local.chat import conversations, history
from finetune_local.chat.record import Record
from finetune_local.system import paths
from finetune_local.system.errors import SpecError


def spoken(home: paths.Home, *texts: str) -> history.History:
    record = Record(history.new(home, "m"))
    for text in texts:
        record.ask(text)
        record.add({"aside": "诗人", "content": f"poem on {text}"}, {"role": "assistant", "content": f"re: {text}"})
    assert record.history is not None
    return record.history


def test_the_list_is_searched_by_every_word_in_any_text(home: paths.Home) -> None:
    first, second = spoken(home, "Weather in Paris", "and Rome?"), spoken(home, "天气怎么样")
    os.utime(first.path, (1, 1))
    assert [one.id for one in conversations.listed(home)] == [second.id, first.id]
    assert [one.name for one in conversations.listed(home, "ROME paris")] == ["Weather in Paris"]
    assert [one.id for one in conversations.listed(home, "天气")] == [second.id]
    assert [one.id for one in conversations.listed(home, "poem weather")] == [first.id], "answers beside count too"
    assert conversations.listed(home, "nowhere") == []
    assert conversations.listed(home)[1].turns == 4


def test_a_renamed_conversation_keeps_its_place(home: paths.Home) -> None:
    first, second = spoken(home, "one"), spoken(home, "two")
    os.utime(first.path, (1000, 1000))
    conversations.rename(home, first.id, "ancient")
    assert [one.name for one in conversations.listed(home)] == ["two", "ancient"]
    assert history.summary(first).title == "ancient"
    assert second.path.exists()


def test_what_was_thrown_away_comes_back_as_it_was(home: paths.Home) -> None:
    one = spoken(home, "secret plans")
    before = one.path.read_bytes()
    key = conversations.remove(home, one.id)
    assert conversations.listed(home) == [] and history.every(home) == []
    with pytest.raises(SpecError, match="no longer exists"):
        conversations.remove(home, one.id)
    assert conversations.restore(home, key) == one.id
    assert one.path.read_bytes() == before
    with pytest.raises(SpecError, match="no longer in the trash"):
        conversations.restore(home, key)


def test_one_that_comes_back_beside_another_of_its_name_gets_another(home: paths.Home) -> None:
    one = spoken(home, "old")
    key = conversations.remove(home, one.id)
    one.path.write_text('{"role": "user", "content": "new"}\n', "utf-8")
    assert conversations.restore(home, key) == f"{one.id}-2"
    assert {c.name for c in conversations.listed(home)} == {"old", "new"}


def test_ids_are_no_paths(home: paths.Home) -> None:
    (home.chats.parent / "outside.jsonl").write_text('{"role": "user", "content": "x"}\n', "utf-8")
    for id_ in ("../outside", "", "nothing", "."):
        with pytest.raises(SpecError, match="no longer exists"):
            conversations.open_one(home, id_)


def test_what_changed_on_disk_is_read_again(home: paths.Home) -> None:
    one = spoken(home, "first")
    assert conversations.read(one).turns[0].content == "first"
    Record(one).ask("second")
    assert conversations.read(one).turns[-1].content == "second"
    assert conversations.listed(home, "second")


def test_of_a_long_list_only_what_changed_is_read_again(home: paths.Home, monkeypatch: pytest.MonkeyPatch) -> None:
    spoken(home, "one")
    second = spoken(home, "two")
    conversations.listed(home)
    read: list[str] = []
    real = history.History.read
    monkeypatch.setattr(history.History, "read", lambda self: (read.append(self.id), real(self))[1])
    conversations.listed(home)
    assert read == []
    second.append({"title": "new"})
    assert [one.name for one in conversations.listed(home)] == ["new", "one"]
    assert read == [second.id]
