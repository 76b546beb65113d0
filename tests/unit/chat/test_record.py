"""What can be done to a conversation without a model: on disk first, and the same after a reload."""

from __future__ import annotations

import pytest

from finetune_local.chat import conversations, history
from finetune_local.chat.record import Record
from finetune_local.data.conversation import Message
from finetune_local.system import paths
from finetune_local.system.errors import SpecError


@pytest.fixture
def record(home: paths.Home) -> Record:
    return Record(history.new(home, "m"))


def answer(record: Record, text: str, adapter: str | None = None, *, aside: bool = False) -> None:
    who = {"aside": adapter} if aside else {"role": "assistant", "adapter": adapter}
    record.add({**who, "content": text, "tokens": 3})


def again(record: Record) -> Record:
    """The conversation as another process reads it."""
    assert record.history is not None
    fresh = Record(history.History(record.history.path))
    assert fresh.conversation.exchanges == record.exchanges
    assert fresh.conversation.turns == record.conversation.turns
    return fresh


def test_answers_side_by_side_are_kept_and_one_is_gone_on_with(record: Record) -> None:
    record.ask("why?")
    answer(record, "base says", None, aside=True)
    answer(record, "formal says", "formal")
    answer(record, "诗人说", "诗人", aside=True)
    (exchange,) = again(record).exchanges
    assert [(a.adapter, a.content, a.facts["tokens"]) for a in exchange.answers] == [
        (None, "base says", 3),
        ("formal", "formal says", 3),
        ("诗人", "诗人说", 3),
    ]
    assert record.conversation.turns[-1] == Message("assistant", "formal says")
    record.choose(None)
    assert again(record).conversation.turns[-1] == Message("assistant", "base says")
    assert record.conversation.answered_by is None
    with pytest.raises(SpecError, match="'nobody' has not answered"):
        record.choose("nobody")


def test_another_answer_takes_the_place_of_all_and_the_next_random_numbers(record: Record) -> None:
    record.ask("why?", expected="because")
    answer(record, "one", None, aside=True)
    answer(record, "two", "formal")
    record.again()
    (exchange,) = again(record).exchanges
    assert (exchange.answers, exchange.retries, exchange.expected) == ([], 1, "because")
    assert record.conversation.open
    record.again()
    assert record.exchanges[0].retries == 1, "what was never answered is no other try"


def test_an_edited_question_takes_back_what_followed(record: Record) -> None:
    for text in ("one", "two", "three"):
        record.ask(text)
        answer(record, text.upper())
    before = record.history.path.read_bytes() if record.history else b""
    record.edit(1, "zwei")
    assert [e.question for e in again(record).exchanges] == ["one", "zwei"]
    assert record.conversation.open and record.history
    assert record.history.path.read_bytes().startswith(before), "nothing is rewritten"
    for number in (2, -1):
        with pytest.raises(SpecError, match="no question"):
            record.edit(number, "x")


def test_a_question_that_was_answered_only_beside_goes_on_with_that(record: Record) -> None:
    record.ask("why?")
    answer(record, "the base was done", None, aside=True)  # then the process was killed
    record.ask("and?")
    assert record.conversation.turns == [
        Message("user", "why?"),
        Message("assistant", "the base was done"),
        Message("user", "and?"),
    ]
    record.ask("or?")
    assert [e.question for e in again(record).exchanges] == ["why?", "or?"]


def test_a_conversation_is_called_by_its_first_words_or_its_title(home: paths.Home, record: Record) -> None:
    assert record.conversation.name == ""
    record.ask("  Translate this   sentence into the short code of our shop, please, and nothing else ")
    assert record.conversation.name == "Translate this sentence into the short code of…"
    assert record.history is not None
    conversations.rename(home, record.history.id, " 商店 代码 ")
    assert conversations.read(record.history).name == "商店 代码"
    conversations.rename(home, record.history.id, "")
    assert conversations.read(record.history).name.startswith("Translate")


def test_chinese_without_spaces_is_cut_too(record: Record) -> None:
    record.ask("请把这句话翻译成我们商店的短代码" * 6)
    assert len(record.conversation.name) == history.TITLE_LENGTH + 1


def test_old_files_without_asides_are_read_as_ever(home: paths.Home) -> None:
    path = home.chats / "20260101-120000.jsonl"
    path.write_text(
        '{"chat": "20260101-120000", "model": "m", "adapters": ["a"]}\n{"role": "assistant", "content": "stray"}\n'
        '{"role": "user", "content": "q"}\n{"role": "assistant", "content": "a", "adapter": "a", "tokens": 2}\n'
        '{"role": "user"}\n["no", "object"]\n{"future": 1}\n',
        "utf-8",
    )
    read = history.History(path).read()
    assert read.turns == [Message("assistant", "stray"), Message("user", "q"), Message("assistant", "a")]
    assert read.answered_by == "a"
