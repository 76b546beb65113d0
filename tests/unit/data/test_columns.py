from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_local.data.conversation import Conversation, Rejected
from finetune_local.data.formats import formats
from finetune_local.data.readers.columns import guess, options, renamed, roles
from finetune_local.data.readers.read import DataFile, opened, read
from finetune_local.spec.run import COLUMN_ROLES, DataSettings, parse_spec
from finetune_local.system.errors import DataError, SpecError

CSV = "Nr;Kunden frage;ANTWORT;system\n1;Wer?;Der.;\n2;Was?;Das.;sei kurz\n"


def texts(path: Path, *columns: str, **more: Any) -> list[list[tuple[str, str]]]:
    found = list(read([path], DataSettings(columns=columns, **more)))
    assert not [r for r in found if isinstance(r, Rejected)]
    return [[(m.role, m.content) for m in r.messages] for r in found if isinstance(r, Conversation)]


def test_columns_of_a_csv_and_of_json_are_named(tmp_path: Path) -> None:
    path = tmp_path / "fragen 问.csv"
    path.write_text(CSV, "utf-8")
    expected = [
        [("user", "Wer?"), ("assistant", "Der.")],
        [("system", "sei kurz"), ("user", "Was?"), ("assistant", "Das.")],
    ]
    assert texts(path, "prompt=Kunden Frage", "completion=antwort") == expected
    rows = [
        {"Kunden frage": "Wer?", "ANTWORT": "Der."},
        {"Kunden frage": "Was?", "ANTWORT": "Das.", "system": "sei kurz"},
    ]
    for name, text in (("a.json", json.dumps(rows)), ("a.jsonl", "\n".join(map(json.dumps, rows)))):
        (tmp_path / name).write_text(text, "utf-8")
        assert texts(tmp_path / name, "prompt=kunden frage", "completion=Antwort") == expected


def test_what_the_user_says_counts_more_than_what_the_names_say(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        json.dumps({"instruction": "x", "output": "y", "prompt": "old", "q": "new", "a": "answer"}), "utf-8"
    )
    assert texts(path, "prompt=q", "completion=a") == [[("user", "new"), ("assistant", "answer")]]
    assert texts(path) == [[("user", "x"), ("assistant", "y")]]


def test_a_column_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(CSV, "utf-8")
    with pytest.raises(DataError, match=r"no column 'antwrt'.*Did you mean 'ANTWORT'.*Its columns: 'Nr'") as caught:
        opened([path], DataSettings(columns=("prompt=kunden frage", "completion=antwrt")))
    assert str(path) in str(caught.value)


def test_a_column_of_later_rows_and_files_with_other_columns(tmp_path: Path) -> None:
    late, other = tmp_path / "late.jsonl", tmp_path / "other.jsonl"
    late.write_text(
        "\n".join(json.dumps({"q": "a", "a": "b"} | ({"persona": "p"} if i > 200 else {})) for i in range(210)), "utf-8"
    )
    other.write_text(
        json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}), "utf-8"
    )
    settings = DataSettings(columns=("prompt=q", "completion=a", "system=persona"))
    files = opened([late, other], settings)
    assert [file.name for file in files] == ["prompt_completion", "openai"]
    found = [row for file in files for row in file]
    assert [r for r in found if isinstance(r, Rejected)] == []
    assert len(found[-2].messages) == 3, "the system text of the last row"  # type: ignore[union-attr]


def test_roles_that_no_format_reads_together_are_no_format(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"q": "a", "m": []}), "utf-8")
    assert DataFile(path, DataSettings(columns=("prompt=q", "messages=m"))).name == "unknown"


@pytest.mark.parametrize(
    ("column", "words"),
    [("frage", "assign a column to a"), ("promt=x", "Did you mean 'prompt'"), ("prompt=", "assign a")],
)
def test_a_mistyped_setting_is_told(column: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        parse_spec({"data": {"columns": [column]}}, "test")
    with pytest.raises(SpecError, match="two columns have the role 'prompt'"):
        parse_spec({"data": {"columns": ["prompt=a", "prompt=b"]}}, "test")


def test_every_role_is_read_by_a_format() -> None:
    known = {key for one in formats().values() for key in one.keys}
    assert set(COLUMN_ROLES) <= known


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"nr": "1", "kundenfrage": "Wie geht das?", "antwort": "So geht das."}, {"prompt": "kundenfrage", "completion": "antwort"}),
        ({"问题": "你好吗？", "答案": "我很好。", "id": 3}, {"prompt": "问题", "completion": "答案"}),
        ({"customer_question": "how?", "agent reply": "so."}, {"prompt": "customer_question", "completion": "agent reply"}),
        ({"x": "a short text", "y": "a much longer text than the other one"}, {"prompt": "x", "completion": "y"}),
        ({"body": "only one text in it", "date": "2024-01-01"}, {"text": "body"}),
        ({"talk": [{"role": "user", "content": "a"}]}, {"messages": "talk"}),
        ({"talk": '[{"role": "user", "content": "a"}]'}, {"messages": "talk"}),
        ({"prompt": "p", "chosen": "good", "rejected": "bad"}, {"completion": "chosen"}),
        ({"chosen": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "a"}], "rejected": []}, {"messages": "chosen"}),
        ({"id": 1, "date": "2024-01-01"}, {}),
        ({}, {}),
    ],
)  # fmt: skip
def test_a_guess_by_names_and_texts(row: dict[str, Any], expected: dict[str, str]) -> None:
    assert guess([row]) == expected


def test_the_reason_of_an_unknown_row_has_the_guess(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"meine frage": "Wer ist das?", "antwort": "Niemand."}', "utf-8")
    (row,) = read([path])
    assert isinstance(row, Rejected)
    assert '--column "prompt=meine frage" --column completion=antwort' in row.reason


def test_renaming_keeps_what_is_not_named() -> None:
    assert renamed({"q": "a", "prompt": "b", "id": 1}, roles(["prompt=Q"])) == {"prompt": "a", "id": 1}
    assert renamed({"s": "", "id": 1}, roles(["system=s"])) == {"id": 1}
    assert options({"prompt": "a b"}) == '--column "prompt=a b"'
