"""Translation of the app's sentences, which are written in English where they are raised.

A sentence is a Message, which keeps its template and values. The files in assets/messages have the Chinese of each template:

    messages = [["{path}: there is no such file.", "{path}：没有这个文件。"], …]

The values of the Message are inserted into the Chinese; a value that is a Message is translated first. A template without words, such
as "{place}: {error}", needs no entry: only its punctuation is converted. A text that is not a Message, such as a user's data or a
sentence that an older version wrote to disk, stays unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from finetune_local.gui.i18n.strings import Strings
from finetune_local.system.messages import PLACE, Message, message_of
from finetune_local.system.paths import assets
from finetune_local.system.untrusted.text import parse_toml

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
