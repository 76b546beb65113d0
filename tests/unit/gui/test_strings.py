"""Sentences of the core in Chinese: found by their template, with values put in as they are; all else stays as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune_local.data.conversation import Rejected
from finetune_local.data.readers.read import read
from finetune_local.gui.i18n.strings import Strings, sentence
from finetune_local.spec.run import parse_spec
from finetune_local.system.errors import SpecError, errors_at
from finetune_local.system.messages import Message, as_message, carried, carrying, join_messages, message_of, msg

CHINESE, ENGLISH = Strings("zh"), Strings("en")


@pytest.mark.parametrize(
    ("message", "chinese"),
    [
        (msg("checking the settings"), "正在检查设置"),
        (
            msg("{setting} = {value} ({reason})", setting="a.b", value=8, reason=msg("{name} is missing", name="x")),
            "a.b = 8（x 不存在）",
        ),
        (
            msg("{path}: {error}.", path="x", error=OSError(13, "Permission denied", "/a/b.json")),
            "x：没有权限（错误 13）：'/a/b.json'。",
        ),
        (
            join_messages(" and ", [msg("it is empty"), "x"]) + "; " + msg("it is not a folder"),
            "它是空的和x；它不是文件夹",
        ),
        (join_messages("\n", [msg("it is empty"), msg("it is not a folder")]), "它是空的\n它不是文件夹"),
    ],
)
def test_sentences(message: Message, chinese: str) -> None:
    assert sentence(CHINESE, message) == chinese
    assert sentence(ENGLISH, message) == message


def test_a_sentence_comes_back_from_json() -> None:
    message = msg("{setting} = {value} ({reason})", setting="a.b", value=8, reason=msg("{name} is missing", name="x"))
    read = carried(json.loads(json.dumps(carrying({"text": message}))))
    assert sentence(CHINESE, read["text"]) == "a.b = 8（x 不存在）"


def test_what_the_core_really_says(tmp_path: Path) -> None:
    tables = {"training": {"epochs": -1, "seed": "x", "sceed": 2, "schedule": "up"}, "method": "lora"}
    with pytest.raises(SpecError) as caught:
        parse_spec(tables, "run.toml")
    lines = sentence(CHINESE, caught.value.message).split("\n")
    assert len(lines) == 4
    assert "run.toml：没有“training.sceed”这个设置。是不是想用“seed”？" in lines
    assert all("应" in line or "没有" in line for line in lines)
    file = tmp_path / "it is empty. x: y.jsonl"
    file.write_text('{"messages": []}\n{"prompt": 3}\n[1]\n{"messages": [{"content": "a"}]}\n{', "utf-8")
    reasons = [row.reason for row in read([file]) if isinstance(row, Rejected)]
    assert len(reasons) == 5
    assert all(sentence(CHINESE, reason) != reason for reason in reasons), reasons


def test_an_error_within_an_error() -> None:
    with pytest.raises(SpecError) as caught, errors_at(msg("[[adapters]] number {number}", number=2)):
        parse_spec({"method": "lorra"}, "run.toml")
    assert sentence(CHINESE, message_of(caught.value)).startswith("第 2 个 [[adapters]]：")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "checking the settings",
        as_message("checking the settings"),
        "{path}: {",
        "\0\x1b[31m",
        msg("a template without Chinese {x}", x="y"),
        msg("{x}", x="checking the settings"),
    ],
)
def test_all_else_stays_as_it_is(text: str) -> None:
    assert sentence(CHINESE, text) == text


@pytest.mark.parametrize(
    "name", ["a: b", "x. y", "it's", "{path} {0}", "loss", "an object", "C:\\目录 1\\a.b", "$1 \\1 %s"]
)
def test_names_are_put_in_as_they_are(name: str) -> None:
    """Also such as could be taken for words of a sentence."""
    found = sentence(CHINESE, msg("{name} is missing", name=name))
    assert found == f"{name} 不存在"
