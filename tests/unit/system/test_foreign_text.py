from __future__ import annotations

from pathlib import Path

import pytest

from finetune_local.system.untrusted.text import (
    ForeignTextError,
    deeper_than,
    is_text,
    parse_json,
    parse_json_object,
    parse_toml,
    read_json,
    read_json_object,
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1', "it is not JSON (line 1, column 8"),
        ('{"a": ' + "9" * 4301 + "}", "a number of 4301 digits"),
        ('{"a": ' + "9" * 301 + "}", "a number of 301 digits"),
        ("[" * 65 + "]" * 65, "nested more than 64 levels deep"),
        ("[" * 100_000 + "]" * 100_000, "nested more than 64 levels deep"),
        ("[" * 100_000, "nested more than 64 levels deep"),
        (b'{"a": "\xff"}', "not UTF-8 text (byte 7)"),
        ("", "it is not JSON"),
    ],
)
def test_what_cannot_be_used_is_one_kind_of_error(text: str | bytes, said: str) -> None:
    with pytest.raises(ForeignTextError) as error:
        parse_json(text)
    assert said in str(error.value)


def test_what_can_be_used_is_read_as_it_is() -> None:
    assert parse_json(b"\xef\xbb\xbf[1, 2.5, null]") == [1, 2.5, None]
    assert parse_json('"' + "[" * 10_000 + '"') == "[" * 10_000  # brackets in a text are no depth
    assert parse_json("[" * 64 + "]" * 64)
    assert parse_json_object('{"größe": "数"}') == {"größe": "数"}
    with pytest.raises(ForeignTextError, match="a JSON object is expected, not a list"):
        parse_json_object("[]")


def test_depth_is_counted_without_recursion() -> None:
    value: list[object] = []
    for _ in range(50_000):
        value = [value]
    assert deeper_than(value, 64)
    assert not deeper_than([[[]]], 3)
    assert deeper_than([[[]]], 2)
    assert not deeper_than("text", 0)


@pytest.mark.parametrize(
    "text", ["a = ", "a = " + "9" * 5000, "a = " + "[" * 50_000, "a = " + "[" * 80 + "]" * 80, b"\xff"]
)
def test_toml_has_the_same_error(text: str | bytes) -> None:
    with pytest.raises(ForeignTextError):
        parse_toml(text)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "配置 file.json"
    file.write_text('{"a": "' + "x" * 1000 + '"}', "utf-8")
    assert read_json_object(file)["a"]
    with pytest.raises(ForeignTextError, match="larger than"):
        read_json(file, most_bytes=100)


def test_text_that_cannot_be_written_is_known() -> None:
    assert is_text("é 数")
    assert not is_text(parse_json('"\\ud800"'))
    assert not is_text(3)
