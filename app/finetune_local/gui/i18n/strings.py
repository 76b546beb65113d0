"""The texts of the window in English and Chinese: strings of the interface, and sentences of the app's core.

Strings are in assets/strings, with both languages side by side. A file `train.toml` has the keys "train.*", each with a list of two
strings: [English, Chinese]. "{name}" is replaced by a value; "one row|{n} rows" has one form for n = 1 and one for all other numbers.
The files of DECLARED have the Chinese only. The English of settings, methods, models and export targets is declared once, where they
are defined (spec/, export/, models.json); `get()` returns None for it.

Sentences are written in English where they are raised. A sentence is a Message, which keeps its template and values, and the files in
assets/messages have the Chinese of each template:

    messages = [["{path}: there is no such file.", "{path}：没有这个文件。"], …]

The values of the Message are inserted into the Chinese; a value that is a Message is translated first. A template without words, such
as "{place}: {error}", needs no entry: only its punctuation is converted. A text that is not a Message, such as a user's data or a
sentence that an older version wrote to disk, stays unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

from finetune_local.system.messages import PLACE, Message, message_of
from finetune_local.system.paths import assets
from finetune_local.system.paths import strings as strings_folder
from finetune_local.system.untrusted.text import parse_toml

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")
DECLARED = ("catalog", "help", "methods", "metrics", "objectives", "quants", "targets")
"""Files (without .toml) whose English is declared in the code."""

Pair = tuple[str | None, str]
"""English and Chinese. The English is None if it is declared in the code."""

_SEPARATORS: Mapping[str, str] = {
    ": ": "：",
    "; ": "；",
    ", ": "、",
    ". ": "。",
    "? ": "？",
    "! ": "！",
    " (": "（",
    "(": "（",
    ")": "）",
}
"""Punctuation of templates without words, in English and Chinese."""
_FULL_STOPS = ("。", "！", "？", "：", "；")


@cache
def table() -> Mapping[str, Pair]:
    """All strings by key. Raises RuntimeError if an entry is malformed."""
    found: dict[str, Pair] = {}
    for file in sorted(strings_folder().glob("*.toml")):
        for key, value in _flat(parse_toml(file.read_bytes())):
            pair = [None, value] if file.stem in DECLARED and isinstance(value, str) else value
            match pair:
                case [str() | None as english, str() as chinese]:
                    found[f"{file.stem}.{key}"] = (english, chinese)
                case _:
                    raise RuntimeError(f"{file.name}: '{key}' is not a list of an English and a Chinese string")
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    result: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            result += _flat(value, f"{prefix}{key}.")
        else:
            result.append((prefix + key, value))
    return result


class Strings:
    """The strings of one language: `t("train.start")`."""

    def __init__(self, language: Language) -> None:
        self.language = language
        self._column = LANGUAGES.index(language)

    def __call__(self, key: str, **values: Any) -> str:
        """The string of a key, with its values. Raises KeyError if the table has none, or none in this language."""
        text = table()[key][self._column]
        if text is None:
            raise KeyError(f"{key} is declared in the code, and only its Chinese is in the table")
        if "|" in text and "n" in values:
            one, _, many = text.partition("|")
            text = one if values["n"] in (1, "1") else many
        return text.format_map(values) if values else text

    def get(self, key: str) -> str | None:
        """The string of a key; None if this language has none."""
        pair = table().get(key)
        return pair[self._column] if pair else None


def sentence(t: Strings, source: str | BaseException) -> str:
    """A text, or the message of an error, in the window's language."""
    text = message_of(source) if isinstance(source, BaseException) else source
    return text if t.language == "en" else in_chinese(text)


def in_chinese(text: str) -> str:
    """A Message in Chinese. A text that is not a Message, or whose template has no Chinese, is returned unchanged."""
    if not isinstance(text, Message):
        return text
    chinese = templates().get(text.template.strip(" "))
    values = {name: in_chinese(value) for name, value in text.values.items()}
    if chinese is not None:
        return PLACE.sub(lambda place: values[place[1]], chinese)
    result = ""
    for number, piece in enumerate(PLACE.split(text.template)):
        shown = values[piece] if number % 2 else _punctuation(piece)
        if shown is None:
            return text
        result += shown.lstrip(" ") if result.endswith(_FULL_STOPS) else shown
    return result


def _punctuation(piece: str) -> str | None:
    """The text between two places in Chinese punctuation; None if it contains words."""
    if piece == " and ":
        return "和"
    if any(letter.isalpha() for letter in piece):
        return None
    for english, chinese in _SEPARATORS.items():
        piece = piece.replace(english, chinese)
    return piece[:-1] + "。" if piece.endswith(".") else piece


@cache
def templates() -> Mapping[str, str]:
    """The Chinese of each template in assets/messages."""
    found: dict[str, str] = {}
    for file in sorted((assets() / "messages").glob("*.toml")):
        found.update((english.strip(" "), chinese) for english, chinese in parse_toml(file.read_bytes())["messages"])
    return found
