from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from finetune_local.data.conversation import Conversation, Rejected
from finetune_local.data.readers import rows
from finetune_local.data.readers.read import DataFile, nothing_usable, read
from finetune_local.spec.run import DataSettings
from finetune_local.system.errors import DataError

ROW = {"prompt": "法国的首都？", "completion": "巴黎。é"}
LINE = json.dumps(ROW, ensure_ascii=False)


def write(folder: Path, name: str, content: str | bytes, encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


def asked(found: Iterable[Conversation | Rejected]) -> list[str]:
    return [r.messages[0].content if isinstance(r, Conversation) and r.messages else str(r) for r in found]


def reasons(found: Iterable[Conversation | Rejected]) -> list[tuple[int, str]]:
    return [(r.source.line, r.reason) for r in found if isinstance(r, Rejected)]


@pytest.mark.parametrize(
    ("name", "content", "container"),
    [
        ("a.jsonl", f"{LINE}\n{LINE}\n", "jsonl"),
        ("a.jsonl", f"\n{LINE}\r\n\r\n{LINE}", "jsonl"),
        ("a.json", f"{LINE}\n{LINE}\n", "jsonl"),
        ("a.data", f"{LINE}\n{LINE}\n", "jsonl"),
        ("a.json", json.dumps([ROW, ROW]), "json"),
        ("a.json", json.dumps([ROW, ROW], indent=2, ensure_ascii=False), "json"),
        ("a.jsonl", json.dumps([ROW, ROW], indent=2), "json"),
        ("a.json", json.dumps({"data": [ROW, ROW]}), "json"),
        ("a.json", json.dumps({"version": 1.5, "train": [ROW, ROW]}, indent=1), "json"),
        ("a.json", json.dumps({"version": "1", "rows": [ROW, ROW]}), "json"),
        ("a.json", json.dumps(ROW, indent=2) + "\n" + json.dumps(ROW, indent=2), "json"),
        ("a.csv", 'prompt,completion\r\n法国的首都？,巴黎。é\r\n"法国的首都？","巴黎。é"\r\n', "csv"),
        ("a.csv", "Prompt;Completion\n法国的首都？;巴黎。é\n法国的首都？;巴黎。é", "csv"),
        ("a.tsv", "prompt\tcompletion\n法国的首都？\t巴黎。é\n法国的首都？\t巴黎。é\n", "csv"),
        ("a.dat", "prompt|completion\n法国的首都？|巴黎。é\n法国的首都？|巴黎。é\n", "csv"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "gb18030"])
def test_every_container_in_every_encoding(
    tmp_path: Path, name: str, content: str, container: str, encoding: str
) -> None:
    folder = tmp_path / "my data 数据"
    folder.mkdir()
    if encoding in ("utf-16-le", "gb18030"):
        content = content.replace("é", "!")  # not a letter that Chinese legacy files are full of
        content += "\n" if content.endswith("\n") else ""
    file = DataFile(write(folder, name, content, encoding))
    found = list(file)
    assert (file.kind.container, file.name) == (container, "prompt_completion")
    assert asked(found) == ["法国的首都？", "法国的首都？"]
    assert [r.source.file for r in found] == [str(file.path)] * 2
    if encoding != "utf-8":
        assert file.kind.encoding in (encoding, "utf-8-sig", "utf-8")


def test_lines_are_numbered_as_an_editor_does(tmp_path: Path) -> None:
    jsonl = write(tmp_path, "a.jsonl", f"{LINE}\n\nbroken\n{LINE}\n")
    assert [r.source.line for r in read([jsonl])] == [1, 3, 4]
    csv = write(tmp_path, "a.csv", 'prompt,completion\n"a\nb",c\nd,e\nonly\nf,g\n')
    assert [r.source.line for r in read([csv])] == [2, 4, 5, 6]
    array = write(tmp_path, "a.json", json.dumps([ROW, {"no": 1}, ROW], indent=4))
    assert [(r.source.line, isinstance(r, Rejected)) for r in read([array])] == [(1, False), (2, True), (3, False)]


def test_one_bad_row_does_not_take_others_with_it(tmp_path: Path) -> None:
    role = json.dumps({"messages": [{"role": "assitant", "content": "x"}]})
    content = b"\n".join(
        [
            LINE.encode(),
            b'{"prompt": "x',
            b"[1]",
            b"3",
            b'{"prompt": "\xff", "completion": "x"}',
            b"\0" * 50,
            role.encode(),
        ]
    )
    found = list(read([write(tmp_path, "a.jsonl", content + b"\n" + LINE.encode() + b"\n")]))
    assert reasons(found) == [
        (2, "it is not JSON: Unterminated string starting at at column 12."),
        (3, "it is a list, expected an object with keys."),
        (4, "it is a number, expected an object with keys."),
        (5, "it is not valid UTF-8. Save the file as UTF-8."),
        (6, "it contains only zero bytes; the file is damaged."),
        (7, "'messages' has role 'assitant'. Did you mean 'assistant'?"),
    ]
    assert len(found) == 8


def test_a_last_line_that_breaks_off_is_told_as_such(tmp_path: Path) -> None:
    found = list(read([write(tmp_path, "a.jsonl", f"{LINE}\n{LINE[:20]}")]))
    assert reasons(found) == [(2, "the last line is incomplete: the file was not written completely.")]


def test_a_json_array_that_breaks_off_keeps_what_came_before(tmp_path: Path) -> None:
    whole = json.dumps([ROW] * 3, indent=1)
    found = list(read([write(tmp_path, "a.json", whole[:-30])]))
    assert len(found) == 3
    ((line, reason),) = reasons(found)
    assert line == 3
    assert "is invalid from here" in reason


def test_numbers_in_json_arrays_are_plain_ones(tmp_path: Path) -> None:
    (row,) = read([write(tmp_path, "a.json", '[{"question": "half?", "answer": 0.5}]')])
    assert isinstance(row, Conversation)
    assert row.messages[1].content == "0.5"


def test_csv_keeps_quotes_line_breaks_and_huge_cells(tmp_path: Path) -> None:
    huge = "长" * 300_000
    content = f'question,answer\n"say ""hi"", please","a\r\nb\n\nc"\nbig,"{huge}"\n'
    found = [r for r in read([write(tmp_path, "a.csv", content)]) if isinstance(r, Conversation)]
    assert [m.content for m in found[0].messages] == ['say "hi", please', "a\r\nb\n\nc"]
    assert found[1].messages[1].content == huge


def test_csv_with_an_open_quote_or_missing_cells_is_told(tmp_path: Path) -> None:
    content = 'prompt,completion\na,b\nc\nd,e,f\n,empty prompt\ng,"never closed\nh,i\n'
    found = list(read([write(tmp_path, "a.csv", content)]))
    told = reasons(found)
    assert [line for line, _ in told] == [3, 4, 5, 6]
    assert "is 1, but the header has 2" in told[0][1]
    assert "is 3, but" in told[1][1]
    assert told[2][1] == "'prompt' is empty."
    assert "never closed" in told[3][1]
    assert len(found) == 5


def test_csv_and_json_of_one_table_give_the_same(tmp_path: Path) -> None:
    table = [
        {"instruction": "译", "input": "", "output": "1"},
        {"instruction": "b", "input": "x, y", "output": "2"},
    ]
    csv = write(tmp_path, "a.csv", 'instruction,input,output\n译,,1\nb,"x, y",2\n')
    array = write(tmp_path, "a.json", json.dumps(table))
    assert [r.messages for r in read([csv]) if isinstance(r, Conversation)] == [
        r.messages for r in read([array]) if isinstance(r, Conversation)
    ]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two columns 'prompt'"):
        list(read([write(tmp_path, "a.csv", "prompt,prompt\na,b\n")]))


def test_a_text_file_with_a_long_line_per_document(tmp_path: Path) -> None:
    documents = [f"第{i}篇。" + "天气很好。" * 200 for i in range(3)]
    found = list(read([write(tmp_path, "a.txt", "\n".join(documents) + "\n")]))
    assert [(r.text, r.ends) for r in found if isinstance(r, Conversation)] == [(d, True) for d in documents]


def test_a_text_file_of_paragraphs_is_cut_between_them(tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {i}.\nIt has two lines of text." for i in range(1500)]
    text = "\n\n".join(paragraphs) + "\n"
    found = [r for r in read([write(tmp_path, "a.txt", text)]) if isinstance(r, Conversation)]
    assert "".join(r.text or "" for r in found).rstrip("\n") == text.rstrip("\n")
    assert len(found) > 5
    assert all(len(r.text or "") <= rows.PART_CHARACTERS + 100 for r in found)
    assert [r.ends for r in found] == [False] * (len(found) - 1) + [True]
    assert all((r.text or "").lstrip("\n").startswith("Paragraph") for r in found)
    lines = text.split("\n")
    assert all((r.text or "").split("\n")[0] == lines[r.source.line - 1] for r in found)


def test_a_small_text_file_is_one_document(tmp_path: Path) -> None:
    (row,) = read([write(tmp_path, "短.txt", "一行\n两行\n")])
    assert isinstance(row, Conversation)
    assert row.text == "一行\n两行"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "the file is empty"),
        (b" \r\n\n", "the file is empty"),
        (b"\xef\xbb\xbf", "the file is empty"),
        (b"\0" * 5000, "only zero bytes"),
        (b"PK\x03\x04rest", "ZIP archive or an Excel workbook"),
        (b"PAR1rest", "Parquet"),
        (b"\x1f\x8brest", "gunzip"),
        (b"%PDF-1.7", "PDF"),
        (bytes(range(128, 256)) * 40, "not UTF-8"),
    ],
)
def test_files_of_no_use_are_refused_with_what_to_do(tmp_path: Path, content: bytes, expected: str) -> None:
    path = write(tmp_path, "数 据.jsonl", content)
    with pytest.raises(DataError, match=expected) as caught:
        list(read([path]))
    assert str(path) in str(caught.value)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="file not found"):
        list(read([tmp_path / "nothing.jsonl"]))
    with pytest.raises(DataError, match="a folder"):
        list(read([tmp_path]))
    with pytest.raises(DataError, match="this is not JSON"):
        list(read([write(tmp_path, "a.json", "hello")]))


def test_windows_latin_text_is_read(tmp_path: Path) -> None:
    line = '{"prompt": "Où est le café élégant?", "completion": "Très près, à côté de l\'hôtel – 5 €"}\n'
    file = DataFile(write(tmp_path, "a.jsonl", line * 20, "cp1252"))
    assert file.kind.encoding == "cp1252"
    assert asked(file) == ["Où est le café élégant?"] * 20


def test_one_broken_byte_does_not_change_the_encoding(tmp_path: Path) -> None:
    content = (LINE + "\n").encode() * 10 + b'{"prompt": "\xff\xfe", "completion": "x"}\n'
    file = DataFile(write(tmp_path, "a.jsonl", content))
    assert file.kind.encoding == "utf-8"
    assert [line for line, _ in reasons(file)] == [11]


def test_a_forced_format_reads_every_row_or_says_why(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", f'{LINE}\n{{"text": "x"}}\n')
    assert len(reasons(read([path]))) == 0
    assert [line for line, _ in reasons(read([path], DataSettings(format="prompt_completion")))] == [2]
    with pytest.raises(DataError, match="unknown format"):
        list(read([path], DataSettings(format="promt")))


def test_keys_that_are_not_read_are_named(tmp_path: Path) -> None:
    row = json.dumps({"question": "q", "answer": "a", "context": "c", "id": 3})
    assert DataFile(write(tmp_path, "a.jsonl", row)).unused == ("context", "id")


def test_no_usable_row_quotes_the_first_reasons(tmp_path: Path) -> None:
    found = list(read([write(tmp_path, "a.jsonl", "".join(f'{{"k{i}": 1}}\n' for i in range(5)))]))
    error = nothing_usable(["a.jsonl"], [r for r in found if isinstance(r, Rejected)])
    assert str(error).count("match no known format") == 3
    assert "line 1" in str(error)


def test_a_row_over_the_limit_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_ROW_BYTES", 1 << 20)
    big = '{"text": "' + "x" * (3 << 20) + '"}'
    found = list(read([write(tmp_path, "a.jsonl", f"{LINE}\n{big}\n{LINE}\n{big}")]))
    assert [line for line, _ in reasons(found)] == [2, 4]
    assert "longer than 1 MB" in reasons(found)[0][1]
    assert len(found) == 4


DIGITS, DEEP = "9" * 4_301, "[" * 2_000 + "]" * 2_000


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (f'{{"prompt": {DIGITS}, "completion": "a"}}', "a number of 4301 digits"),
        (f'{{"prompt": "q", "completion": {DEEP}}}', "nested more than 64 levels deep"),
        (json.dumps({"messages": f'[{{"role": "user", "content": {DIGITS}}}]'}), "a number of 4301 digits"),
        (json.dumps({"messages": f"[{DEEP}]"}), "nested more than 64 levels deep"),
        (
            json.dumps({"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": DEEP}]}]}),
            "nested more than 64 levels deep",
        ),
        (
            '{"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": NaN}}]}]}',
            "contains NaN or Infinity",
        ),
        ('{"prompt": "q", "completion": NaN}', "is nan, an empty cell"),
        ('{"prompt": 1e999, "completion": "a"}', "is inf, an empty cell"),
        ('{"prompt": "q", "completion": "\\ud800"}', "half a character"),
        ('{"chat_log": ["hi", 3, null]}', "is a text, expected an object with a role"),
        ('{"messages": [{"role": ["user"], "content": "x"}]}', "has role ['user']"),
    ],
)
def test_what_json_allows_and_nothing_can_use_costs_its_row(tmp_path: Path, name: str, bad: str, reason: str) -> None:
    good, container = [LINE, bad, LINE], name.removeprefix("a.")
    text = "\n".join(good) if container == "jsonl" else "[" + ",\n".join(good) + "]"
    file = DataFile(write(tmp_path, name, text))
    found = list(file)
    assert file.kind.container == container
    assert [isinstance(row, Conversation) for row in found] == [True, False, True]
    ((line, told),) = reasons(found)
    assert line == 2
    assert reason in told


def test_an_empty_cell_of_pandas_is_no_input(tmp_path: Path) -> None:
    (row,) = read([write(tmp_path, "a.jsonl", '{"instruction": "i", "input": NaN, "system": NaN, "output": "o"}')])
    assert isinstance(row, Conversation)
    assert [m.content for m in row.messages] == ["i", "o"]


@pytest.mark.parametrize("time", ['"²"', '"①"', "1" + "0" * 299, "1e308", "NaN", "[]", '"9999-12-31T23:59:59-23:59"'])
def test_a_time_that_is_none_costs_no_message(tmp_path: Path, time: str) -> None:
    said = [f'{{"speaker": "{"user" if i % 2 else "assistant"}", "text": "{i}", "time": {time}}}' for i in range(4)]
    (row,) = read([write(tmp_path, "a.jsonl", "\n".join(said))], DataSettings(assistant="assistant"))
    assert isinstance(row, Conversation)
    assert [m.content for m in row.messages] == ["1", "2", "3"]


def test_half_a_character_of_utf_16_costs_its_row(tmp_path: Path) -> None:
    text = "\n".join([LINE, '{"prompt": "q\ud800", "completion": "a"}', LINE, ""])
    path = write(tmp_path, "a.jsonl", b"\xff\xfe" + text.encode("utf-16-le", "surrogatepass") + b"\n")
    file = DataFile(path)
    assert file.kind.encoding == "utf-16"
    assert [line for line, _ in reasons(file)] == [2, 4]
    assert len(asked(file)) == 4


def test_a_csv_row_over_the_limit_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_ROW_BYTES", 1 << 16)
    long = "x" * (1 << 17)
    quoted = '"' + "line\n" * (1 << 14) + '",a'
    content = f"prompt,completion\nq1,a\n{long},a\nq2,a\n{'1,' * (1 << 16)}\nq3,a\nq\0,a\n{quoted}\nq5,a\n"
    found = list(read([write(tmp_path, "a.csv", content)]))
    used = [row.messages[0].content for row in found if isinstance(row, Conversation)]
    assert used[:4] == ["q1", "q2", "q3", "q\0"]
    assert [line for line, why in reasons(found) if "longer than 0 MB" in why] == [3, 5, 8]
    with pytest.raises(DataError, match="the header of a CSV file"):
        DataFile(write(tmp_path, "b.csv", "a" * (1 << 20) + ",b\nq,a\n"))


def test_a_reason_quotes_no_more_than_can_be_read(tmp_path: Path) -> None:
    row = json.dumps({"messages": [{"role": "x" * 1_000_000, "content": "a"}]})
    ((_, reason),) = reasons(read([write(tmp_path, "a.jsonl", row)]))
    assert len(reason) < 3_000
    assert reason.startswith("'messages' has role 'xxx")
    assert reason.endswith("--assistant NAME")


@pytest.mark.parametrize("text", ["\x85", "\x1c\n", "\x0b \x0c", "\u3000\n"])
def test_a_file_of_other_spaces_is_empty_too(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match="the file is empty"):
        DataFile(write(tmp_path, "a.dat", text))


def test_rows_of_a_great_many_keys_are_rejected(tmp_path: Path) -> None:
    wide = json.dumps({f"k{i}": 1 for i in range(50_000)})
    found = list(read([write(tmp_path, "a.jsonl", f"{wide}\n{LINE}\n{wide}\n")]))
    assert reasons(found) == [(n, "it has 50,000 keys, more than 10,000.") for n in (1, 3)]
    with pytest.raises(DataError, match="50,000 columns"):
        DataFile(write(tmp_path, "a.csv", ",".join(f"c{i}" for i in range(50_000)) + "\n"))


@pytest.mark.parametrize(("name", "line"), [("rows", 101), ("rows.jsonl", 101), ("rows.json", 101), ("rows.csv", 102)])
def test_any_number_of_blank_lines_may_come_first(tmp_path: Path, name: str, line: int) -> None:
    path = write(tmp_path, name, "\n" * 100 + ("text,note\nx,y\n" if name == "rows.csv" else '{"text": "x"}\n'))
    assert [(row.source.line, row.text) for row in DataFile(path) if isinstance(row, Conversation)] == [(line, "x")]
