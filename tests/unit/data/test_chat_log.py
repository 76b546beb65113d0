from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_local.data.conversation import Conversation, Message, Rejected, RowRejected, Source
from finetune_local.data.readers import chat_log, chat_text
from finetune_local.data.readers.read import DataFile, read
from finetune_local.data.readers.speakers import cast, merged, named
from finetune_local.spec.run import DataSettings

IPHONE = """\u200e[12/31/23, 10:15:30] Alice: \u200eMessages and calls are end-to-end encrypted.
[12/31/23, 10:15:31] Alice: Hi there
how are you?
[12/31/23, 10:16:30] Bob: fine
[12/31/23, 10:16:40] Bob: \u200eimage omitted
[12/31/23, 10:17:30] Bob: ok: then
[12/31/23, 10:18:30] Alice: good
[1/1/24, 9:18:30\u202fPM] Alice: happy new year
[1/1/24, 9:19:30\u202fPM] Bob: thanks! <This message was edited>
"""
ANDROID = """31.12.23, 10:15 - Nachrichten sind verschlüsselt.
31.12.23, 10:15 - Alice: hallo
31.12.23, 10:16 - Bob: na
31.12.23, 10:16 - Bob: <Medien ausgeschlossen>
31.12.23, 10:17 - Carol: hey
31.12.23, 10:18 - Alice: tag
"""
QQ = """消息记录（此消息记录为文本格式）

2023-12-31 10:15:30 小明(12345678)
你好

2023-12-31 10:16:30 小红(22345678)
你好啊
在吗

2023-12-31 10:17:00 小明(12345678)
在
2023-12-31 10:18:00 小红(22345678)
好
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    return path


def turns(path: Path, **settings: Any) -> list[list[tuple[str, str]]]:
    found = list(DataFile(path, DataSettings(**settings)))
    assert [r.reason for r in found if isinstance(r, Rejected)] == []
    return [[(m.role, m.content) for m in r.messages] for r in found if isinstance(r, Conversation)]


def reasons(path: Path, **settings: Any) -> list[str]:
    return [r.reason for r in DataFile(path, DataSettings(**settings)) if isinstance(r, Rejected)]


def test_an_iphone_export_is_two_conversations_by_its_silence(tmp_path: Path) -> None:
    path = write(tmp_path / "_chat 聊.txt", IPHONE)
    assert turns(path, assistant="bob") == [
        [("user", "Hi there\nhow are you?"), ("assistant", "fine\nok: then"), ("user", "good")],
        [("user", "happy new year"), ("assistant", "thanks!")],
    ]
    file = DataFile(path)
    assert (file.name, file.kind.container) == ("chat_log", "text")
    assert [row.source.line for row in file] == [2, 8]


def test_several_others_are_told_apart_by_their_names(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", ANDROID)
    assert turns(path, assistant="Alice") == [[("user", "Bob: na\nCarol: hey"), ("assistant", "tag")]]


def test_a_qq_export(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", QQ)
    assert turns(path, assistant="小红") == [
        [("user", "你好"), ("assistant", "你好啊\n在吗"), ("user", "在"), ("assistant", "好")]
    ]


def test_without_a_choice_the_reason_says_who_speaks(tmp_path: Path) -> None:
    first, *_ = reasons(write(tmp_path / "a.txt", IPHONE))
    assert first == "it is a chat between Alice, Bob. Choose whose messages to learn: --assistant Alice"
    file = DataFile(tmp_path / "a.txt")
    list(file)
    assert file.speakers == {"Alice": 3, "Bob": 3}
    assert (
        "'Zoe' has no messages in it; its speakers are: Alice, Bob." in reasons(tmp_path / "a.txt", assistant="Zoe")[0]
    )


@pytest.mark.parametrize(
    "text",
    [
        "2023-12-31 10:15:30 ERROR: disk\n2023-12-31 10:15:31 INFO: ok\n" * 4,
        "Chapter one: it begins.\nNote: this is a text.\nNote: and so on.\nChapter two: it ends.\n",
        "[12/31/23, 10:15] Alice: only one who speaks\n" * 5,
    ],
)
def test_what_is_no_chat_stays_a_text(tmp_path: Path, text: str) -> None:
    assert DataFile(write(tmp_path / "a.txt", text)).name == "text"


def test_a_chat_can_be_learned_as_the_text_it_is(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", ANDROID)
    (row,) = DataFile(path, DataSettings(format="text"))
    assert isinstance(row, Conversation)
    assert row.text == ANDROID.rstrip("\n")


def test_lines_without_times_are_a_chat_only_where_the_user_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "Alice: hi\nBob: yo\nbut note: this\nAlice: bye\nBob: ok\n")
    assert DataFile(path).name == "text"
    expected = [("user", "hi"), ("assistant", "yo\nbut note: this"), ("user", "bye"), ("assistant", "ok")]
    assert turns(path, format="chat_log", assistant="Bob") == [expected]


def test_rows_of_a_table_are_messages(tmp_path: Path) -> None:
    rows = ["time,author,message", "2023-12-31 10:15,Alice,hi", "2023-12-31 10:16,Bob,hello", "2023-12-31 10:17,Alice,how",
            "31.12.2023 20:17,Bob,late", "31.12.2023 20:18,Alice,yes", "31.12.2023 20:19,Bob,"]  # fmt: skip
    path = write(tmp_path / "a.csv", "\n".join(rows))
    assert turns(path, assistant="Alice") == [
        [("user", "hello"), ("assistant", "how")],
        [("user", "late"), ("assistant", "yes")],
    ]
    other = write(tmp_path / "b.csv", "\n".join(rows).replace("time,author,message", "wann,wer,was"))
    assert DataFile(other).name == "unknown"
    assert turns(other, assistant="Alice", columns=("time=wann", "speaker=wer", "text=was")) == turns(
        path, assistant="Alice"
    )


def test_documents_with_authors_are_no_chat(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "author,text\nGoethe,Faust\nKant,Kritik\nGoethe,Werther\nKant,Pflicht\n")
    assert DataFile(path).name == "text"
    many = "\n".join(json.dumps({"speaker": f"s{i}", "text": "t"}) for i in range(30))
    assert DataFile(write(tmp_path / "a.jsonl", many)).name == "text"


def test_a_row_for_each_turn_of_user_and_assistant_needs_no_choice(tmp_path: Path) -> None:
    rows = [
        {"conversation_id": i % 2, "role": role, "content": f"{role} {i}"}
        for role in ("system", "user", "assistant")
        for i in range(2)
    ]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)) + "\nbroken\n")
    found = list(DataFile(path))
    assert [[m.content for m in r.messages] for r in found if isinstance(r, Conversation)] == [
        [f"{role} {i}" for role in ("system", "user", "assistant")] for i in range(2)
    ]
    assert [r.source.line for r in found if isinstance(r, Rejected)] == [7]


def test_a_telegram_export(tmp_path: Path) -> None:
    message = {"id": 1, "type": "message", "date": "2024-01-01T10:00:00"}
    service = {
        "id": 0,
        "type": "service",
        "date": "2024-01-01T10:00:00",
        "actor": "Alice",
        "action": "invite",
        "text": "",
    }
    said = [{"from": "Alice", "text": ["hi ", {"type": "bold", "text": "you"}]}, {"from": "Bob", "text": "yo"}]
    values = {
        "name": "Bob",
        "type": "personal_chat",
        "id": 1,
        "messages": [service, *({**message, **one} for one in said)],
    }
    path = write(tmp_path / "result.json", json.dumps(values, indent=1))
    assert turns(path, assistant="Bob") == [[("user", "hi you"), ("assistant", "yo")]]


def test_a_long_chat_is_cut_after_an_answer() -> None:
    rows = [(i, {"speaker": ("A", "B")[i % 2], "text": f"{i}"}) for i in range(1, 200)]
    keys = chat_log.keys_of([row for _, row in rows])
    assert keys is not None
    found = [value for _, value in chat_log.conversations(iter(rows), keys, "A")]
    assert len(found) > 3
    assert all(len(one["chat_log"]) <= chat_log.MOST_TURNS + 2 for one in found)
    assert [one["chat_log"][-1]["from"] for one in found[:-1]] == ["A"] * (len(found) - 1)
    assert sum(len(one["chat_log"]) for one in found) == len(rows), "nothing is lost"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2024-01-01 00:00", 1704067200), ("2024-01-01T01:00:00+01:00", 1704067200), ("1704067200", 1704067200),
     (1704067200000, 1704067200), ("01.01.2024, 00:00", 1704067200), ("1/13/24, 12:00 AM", 1705104000),
     ("2024/1/1 上午0:00", 1704067200), ("no time", None), (None, None), (True, None)],
)  # fmt: skip
def test_times_as_data_has_them(text: object, seconds: float | None) -> None:
    assert chat_log.when(text) == seconds


def test_dates_have_one_order_in_a_file() -> None:
    american = chat_text.recognised("1/2/24, 9:00 PM - A: x\n1/3/24, 9:00 PM - B: y\n1/4/24, 9:00 PM - A: z\n")
    european = chat_text.recognised("1/2/24, 21:00 - A: x\n1/3/24, 21:00 - B: y\n13/4/24, 21:00 - A: z\n")
    assert american is not None and american.order == "mdy"
    assert european is not None and european.order == "dmy"


def test_named_speakers_of_conversations(tmp_path: Path) -> None:
    row = {
        "conversations": [
            {"from": "Alice", "value": "hi"},
            {"from": "Bob", "value": "yo"},
            {"from": "Alice", "value": "a"},
        ]
    }
    path = write(tmp_path / "a.jsonl", json.dumps(row))
    (reason,) = reasons(path)
    assert "has role 'Alice'" in reason and "--assistant NAME" in reason
    assert turns(path, assistant="Alice") == [[("user", "yo"), ("assistant", "a")]]
    swapped = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "r"},
    ]
    both = write(tmp_path / "b.jsonl", json.dumps({"messages": [{"role": "system", "content": "s"}, *swapped]}))
    assert turns(both, assistant="user") == [[("system", "s"), ("user", "a"), ("assistant", "r")]]


def test_weights_and_tools_stay_what_they_are() -> None:
    row = {"messages": [{"role": "tool", "content": "r"}, {"name": "Eva", "role": "user", "content": "x", "weight": 0}]}
    assert cast(row, "eva")["messages"] == [
        {"content": "r", "role": "tool"},
        {"content": "x", "weight": 0, "role": "assistant"},
    ]


def test_turns_of_one_side_become_one() -> None:
    said = [("assistant", "0"), ("user", "1"), ("user", "2"), ("assistant", "3"), ("assistant", "4")]
    conversation = Conversation(tuple(Message(role, text) for role, text in said), Source("f", 1))  # type: ignore[arg-type]
    assert merged(conversation).messages == (Message("user", "1\n2"), Message("assistant", "3\n4"))
    with pytest.raises(RowRejected, match="it has no message"):
        merged(Conversation((Message("assistant", "alone"),), Source("f", 1)))


def test_a_few_mistyped_roles_are_no_speakers() -> None:
    assert named({"user": 50, "assistant": 50, "assitant": 2}) == []
    assert named({"Alice": 5, "user": 9, "Bob": 7}) == ["Bob", "Alice"]


def test_a_message_that_never_ends_is_told(tmp_path: Path) -> None:
    lines = [
        "[12/31/23, 10:15] Ann: hi",
        "[12/31/23, 10:16] Bob: yes",
        "x" * 200_000,
        "[12/31/23, 10:17] Ann: so",
        "[12/31/23, 10:18] Bob: no",
        "",
    ]
    path = tmp_path / "chat.txt"
    path.write_text("\n".join(lines), "utf-8")
    found = list(read([path], DataSettings(assistant="Bob")))
    assert [row.reason for row in found if isinstance(row, Rejected)] == [
        "the message is longer than 100,000 characters. Is the rest of the file really a chat?"
    ]
    assert len(found) == 2


def test_the_mark_of_an_edited_message_is_taken_off(tmp_path: Path) -> None:
    lines = [
        "[12/31/23, 10:15] Ann: a <b> c",
        "[12/31/23, 10:16] Bob: yes" + " " * 20_000 + "<This message was edited>",
        "",
    ]
    path = tmp_path / "chat.txt"
    path.write_text("\n".join(lines), "utf-8")
    (row,) = read([path], DataSettings(assistant="Bob"))
    assert isinstance(row, Conversation)
    assert [m.content for m in row.messages] == ["a <b> c", "yes"]
