from __future__ import annotations

import io
import json
import random
import re
from typing import Any

import pytest

from finetune_local.data.readers import json_rows, rows
from finetune_local.data.readers.json_rows import array_of_objects

DIGITS = "9" * 4_301
DEEP = "[" * 20_000


def found(text: str | bytes, array: str | None = "", chunk: int = 0) -> list[tuple[int, Any]]:
    """Rows, reasons as texts, read in chunks of some size."""
    content = text if isinstance(text, bytes) else text.encode("utf-8")
    with pytest.MonkeyPatch.context() as patch:
        if chunk:
            patch.setattr(json_rows, "CHUNK", chunk)
        result = list(json_rows.json_rows(io.BytesIO(content), array))
    return [(number, row.reason if isinstance(row, rows.Problem) else row) for number, row in result]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f'[{{"a": 1}}, {{"a": {DIGITS}}}, {{"a": 3}}]', "a number of 4301 digits"),
        (f'[{{"a": 1}}, {{"a": {DEEP}{"]" * len(DEEP)}}}, {{"a": 3}}]', "nested more than 64 levels deep"),
        ('[{"a": 1}, {"a": nope}, {"a": 3}]', "it is not JSON (line 1, column 18: Expecting value)"),
        ('[{"a": 1}, {\'a\': 2}, {"a": 3}]', "it is not JSON (line 1, column 13: Expecting property name"),
        ('[{"a": 1},\n{"a": "2},\n{"a": 3}]', "it is not JSON (line 2, column 11: Invalid control character"),
        ('[{"a": 1},\n{"a": "b"c"},\n{"a": 3}]', "it is not JSON (line 2, column 10: Expecting ',' delimiter"),
        ('[{"a": 1},\n{"a": {"b": 2},\n{"a": 3}]', "it is not JSON (line 3, column 1: Expecting property name"),
        ('[{"a": 1}, {"a": [2}, {"a": 3}]', "it is not JSON (line 1, column 20: Expecting ',' delimiter"),
        ('[{"a": 1}, // two\n {"a": 3}]', "it is not JSON (line 1, column 12: Expecting value)"),
        ('[{"a": 1}, {"a": "one\ntwo ] }"}, {"a": 3}]', "it is not JSON (line 1, column 22: Invalid control"),
        (b'[{"a": 1}, {"a": "\xff"}, {"a": 3}]', "it is not valid UTF-8"),
        (b'[{"a": 1}, {"a": "\xed\xa0\x80"}, {"a": 3}]', "it is not valid UTF-8"),
    ],
)
@pytest.mark.parametrize("chunk", [0, 1, 3, 64])
def test_a_bad_row_of_an_array_costs_itself_alone(text: str | bytes, reason: str, chunk: int) -> None:
    got = found(text, chunk=chunk)
    assert [number for number, _ in got] == [1, 2, 3]
    assert got[0][1] == {"a": 1}
    assert got[2][1] == {"a": 3}
    expected = reason if chunk == 0 else re.sub(r" of \d+ digits", "", reason)  # a part of the number is enough
    assert expected in got[1][1]


@pytest.mark.parametrize(
    ("text", "rows_read", "said"),
    [
        ('[{"a": 1}, {"a"', 1, "line 1, column 16: Expecting ':' delimiter"),
        ('[{"a": 1},\n{"a": "x', 1, "line 2, column 7: Unterminated string"),
        ('[{"a": 1},', 1, "line 1, column 11: the array is not closed"),
        ('[{"a": 1}] x', 1, "line 1, column 12: there is more text after the end"),
        (DEEP, 0, "nested more than 64 levels deep"),
        ('[{"a": 1}, {"a": 2},]', 2, "a trailing comma at the end of the array"),
    ],
)
def test_a_file_that_breaks_off_says_where(text: str, rows_read: int, said: str) -> None:
    got = found(text)
    assert [number for number, _ in got] == list(range(1, rows_read + 2))
    assert said in got[-1][1]


def test_a_missing_comma_is_told_and_costs_nothing() -> None:
    got = found('[{"a": 1} {"a": 2}]')
    assert [row for _, row in got if not isinstance(row, str)] == [{"a": 1}, {"a": 2}]
    assert [number for number, row in got if isinstance(row, str)] == [2]


def test_a_beginning_that_rows_hold_within_is_no_place_to_go_on_at() -> None:
    good = '{"id": {"id": 1}, "text": "a"}'
    got = found(f'[{good}, {{"id": {{"id": 2}}, "text": "b"c", "x": {{"id": 3}}}}, {good}]')
    assert [row for _, row in got if isinstance(row, dict)] in ([json.loads(good)], [json.loads(good)] * 2)


@pytest.mark.parametrize("chunk", [0, 1, 2, 5, 17, 1000])
def test_what_is_read_does_not_depend_on_where_the_stream_is_cut(chunk: int) -> None:
    draw = random.Random(0)
    values: list[Any] = [
        None,
        True,
        0,
        -1.5e-7,
        12345678901234567890,
        float("inf"),
        float("-inf"),
        "",
        ']}\\"{[',
        "词 😀 é",
        [],
        {},
    ]
    made = [{f"k{i}": draw.choice(values), "m": [draw.choice(values) for _ in range(3)]} for i in range(60)]
    text = json.dumps(made, ensure_ascii=True, indent=draw.choice((None, 1)))
    assert [row for _, row in found(text, chunk=chunk)] == made
    plain = json.dumps(made, ensure_ascii=False)
    assert [row for _, row in found(f'{{"n": {{"data": [1]}}, "data": {plain}, "z": "]"}}', "data", chunk)] == made
    assert [row for _, row in found("\ufeff" + " ".join(map(json.dumps, made)), None, chunk)] == made


def test_values_one_after_the_other() -> None:
    assert [row for _, row in found('{"a": 1}{"a": 2}\n\n[3] "x" 12', None)] == [{"a": 1}, {"a": 2}, [3], "x", 12]
    got = found('nope\n{"a": 1}\n} {"a": 2}', None)
    assert [row for _, row in got if isinstance(row, dict)] == [{"a": 1}, {"a": 2}]
    assert len(got) == 4


@pytest.mark.parametrize("array", ["", "data"])
def test_a_row_over_the_limit_is_passed_over_without_being_held(array: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_ROW_BYTES", 1 << 18)
    long = '{"a": "' + "x]}" * (1 << 20) + '"}'
    text = f'[{{"a": 1}}, {long}, {{"a": 3}}]'
    content = (f'{{"{array}": {text}}}' if array else text).encode()
    held = _Longest(monkeypatch)
    got = list(json_rows.json_rows(io.BytesIO(content), array))
    assert [row for _, row in got if isinstance(row, dict)] == [{"a": 1}, {"a": 3}]
    assert isinstance(got[1][1], rows.Problem)
    assert "MB; split it" in got[1][1].reason
    assert held.characters <= 4 * rows.MAX_ROW_BYTES < len(content) // 2


def test_reading_is_linear_in_a_long_row_and_in_bad_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: how much text is held again for each character of the file."""
    for content in (
        b'[{"a": "' + b"x" * (4 << 20) + b'"}' + b', {"a": 1}' * 1000 + b"]",
        b"[" + b'{"a": "x},\n' * 4_000 + b"]",
        b"[" + b'{"a": {"x": 1},\n' * 4_000 + b"]",
        b'[{"z": 1},' + b"nope," * 8_000 + b"]",
        b"[" * 1_000_000,
    ):
        held = _Longest(monkeypatch)
        for _ in json_rows.json_rows(io.BytesIO(content), ""):
            pass
        assert held.moved <= 6 * len(content), (content[:20], held.moved / len(content))


@pytest.mark.slow
def test_too_many_parts_are_refused_before_they_take_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_local.system.untrusted.text.MOST_PARTS", 200_000)
    got = found('[{"a": 1}, {"a": [' + "[]," * 300_000 + "[]]}, " + '{"a": "' + "[]," * 300_000 + '"}]')
    assert "it has more than 200,000 values" in got[1][1]
    assert isinstance(got[2][1], dict)


def test_the_array_of_rows_is_found_by_its_name_and_its_objects() -> None:
    def key(text: str) -> str | None:
        return array_of_objects(io.BytesIO(text.encode()), ("data", "rows"))

    assert key('{"n": "[{", "x": {"data": [{}]}, "rows": [1], "Data": [ {"a"') == "Data"
    assert key('{"rows": [[{}]], "z": [{}]}') is None
    assert key('{"rows": ' + DEEP) is None
    assert key('["data", [{}]]') is None


class _Longest:
    """Watches a reader: the most characters held at once, and how many were moved when it read on."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.characters = self.moved = 0
        read = json_rows._Text.more

        def more(text: json_rows._Text) -> None:
            read(text)
            self.characters = max(self.characters, len(text.text))
            self.moved += len(text.text)

        patch.setattr(json_rows._Text, "more", more)
