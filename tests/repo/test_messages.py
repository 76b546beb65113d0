"""What the app says has its Chinese in assets/messages, and nothing else has.

A template that was changed in the source fails here twice: the old one is said by nobody, and the new one has no Chinese.
"""

from __future__ import annotations

import ast
import errno
import json
import os
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic_core._pydantic_core import list_all_errors

import sentences
from finetune_local.system import errors
from finetune_local.system.messages import PLACE

ROOT = Path(__file__).resolve().parents[2]

SAME = {"MLP", "GGUF", "Ollama", "LM", "Studio", "llama.cpp", "logits", "affine", "backend", "token", "MB"}
"""Words that are the same in Chinese."""

COMMANDS = re.compile(r"`[^`]*`|'[^']*'|finetune-local [\w ]+|(?:pip|apt|git|models) [\w-]+ [\w.-]+|Git LFS|GGUF")
"""What the user types, and names of two words."""

QUOTED = {"Name or service not known", "Temporary failure in name resolution", "Disk quota exceeded"}
"""What only some systems say, in these words."""

SAID_ELSEWHERE = "system.toml"
"""The one file of what Python, pydantic and the system say."""

RETIRED = "retired.toml"
"""The file of templates that only earlier versions used and stored, in events, notes and verdicts: they keep their Chinese."""


def _pairs(name: str = "*.toml") -> list[tuple[str, str]]:
    found = []
    for file in sorted((ROOT / "assets" / "messages").glob(name)):
        found += [(english, chinese) for english, chinese in tomllib.loads(file.read_text("utf-8"))["messages"]]
    return found


def _has_words(template: str) -> bool:
    return bool(re.search(r"[^\W\d_]", PLACE.sub("", template)))


def test_each_template_is_a_literal_and_gets_its_values() -> None:
    said = sentences.listed()
    assert len(said) > 1000, "the listing finds too little"
    assert [str(one) for one in said if one.template is None] == []
    wrong = [
        str(one)
        for one in said
        if one.template is not None and "None" not in one.values and set(PLACE.findall(one.template)) != one.values
    ]
    assert wrong == []


def test_each_template_has_its_chinese() -> None:
    known = {english for english, _ in _pairs()}
    missing = [str(one) for one in sentences.listed() if _has_words(one.template or "") and _key(one) not in known]
    assert missing == [], "without Chinese in assets/messages"


def _key(said: sentences.Said) -> str:
    return (said.template or "").strip(" ")


def test_no_template_is_left_over() -> None:
    said = {_key(one) for one in sentences.listed()}
    kept = set(_pairs()) - set(_pairs(SAID_ELSEWHERE)) - set(_pairs(RETIRED))
    assert [english for english, _ in _pairs(RETIRED) if english in said] == [], "in use: move it to another file"
    assert sorted(english for english, _ in kept if english not in said) == [], "nobody says these any more"
    quoted = {PLACE.sub("{}", text) for text in _system_texts()} | {PLACE.sub("{}", text) for text in said}
    assert [e for e, _ in _pairs(SAID_ELSEWHERE) if PLACE.sub("{}", e) not in quoted] == [], "no system says these"


def _system_texts() -> Iterator[str]:
    """What the core quotes from pydantic, Python and the system."""
    yield from (error["message_template_python"].removeprefix("Input ") for error in list_all_errors())
    yield from (os.strerror(number) for number in errno.errorcode)
    yield from QUOTED
    for wrong in ("", "{1", "{", '{"a" 1}', '{"a": 1 2}', "1 2", '"', '"\n"', r'"\q"', r'"\u1"'):
        try:
            json.loads(wrong)
        except json.JSONDecodeError as error:
            yield error.msg


def test_both_languages_have_the_same_places() -> None:
    wrong = [e for e, chinese in _pairs() if set(PLACE.findall(e)) != set(PLACE.findall(chinese))]
    assert wrong == []


def test_no_template_twice() -> None:
    assert [english for english, number in Counter(english for english, _ in _pairs()).items() if number > 1] == []


def test_chinese_is_chinese() -> None:
    strange = re.compile(
        r"[\u3400-\u9fff][,;:?!](?!\d)|[\u3400-\u9fff]\.(?:\s|$)|\s[，。；：？！）]|[，。；：？！（]\s(?!$)"
    )
    for english, chinese in _pairs():
        left = re.sub(r"\{.*?\}|--[\w-]+|\b[a-z]+\.[a-z]+(?= =)", " ", chinese)
        words = set(re.findall(r"[A-Za-z][\w.]*", left))
        assert re.search(r"[\u3400-\u9fff]", left) or words <= SAME, english
        assert not strange.search(chinese), chinese
        assert not re.search(r"[A-Za-z]{2,}(?: [A-Za-z]{2,}){2,}", COMMANDS.sub(" ", left)), (
            f"half translated: {chinese}"
        )
        assert not re.search(r"[\u3400-\u9fff]", english), english


def _error_classes() -> set[str]:
    return {
        name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.FinetuneError)
    }


@pytest.mark.parametrize("path", sentences.files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_error_is_raised_with_a_plain_string(path: Path) -> None:
    """mypy holds the types; this holds what it cannot see: a literal or an f-string that is passed as Any."""
    wrong = [
        f"{path.name}:{node.lineno}"
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", getattr(node.func, "attr", "")) in _error_classes()
        and node.args
        and isinstance(node.args[0], ast.JoinedStr | ast.Constant)
    ]
    assert wrong == []
