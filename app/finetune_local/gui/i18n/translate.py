"""Sentences of the app's core, which are written in English where they are raised, in the language of the window.

A sentence is a Message, which keeps the template it was made from. The files in assets/messages hold the Chinese of each template:

    messages = [["{path}: there is no such file.", "{path}：没有这个文件。"], …]

The places of the Chinese are filled with the values of the Message; a value that is a Message itself is translated in turn. A
template without words, such as "{place}: {error}", needs no line: its separators are written as Chinese has them. A text that is no
Message (a user's data, what an older version left on the disk) stays as it is.
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
"""Punctuation of a template without words."""
_FULL_STOPS = ("。", "！", "？", "：", "；")


def sentence(t: Strings, said: str | BaseException) -> str:
    """A text, or what an error says, in the window's language."""
    text = message_of(said) if isinstance(said, BaseException) else said
    return text if t.language == "en" else in_chinese(text)


def in_chinese(text: str) -> str:
    """A Message in Chinese; another text, and a Message whose template is unknown, as it is."""
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
    """What stands between places, as Chinese has it; None for words."""
    if piece == " and ":
        return "和"
    if any(letter.isalpha() for letter in piece):
        return None
    for english, chinese in _SEPARATORS.items():
        piece = piece.replace(english, chinese)
    return piece[:-1] + "。" if piece.endswith(".") else piece


@cache
def templates() -> Mapping[str, str]:
    """The Chinese of every template in assets/messages."""
    found: dict[str, str] = {}
    for file in sorted((assets() / "messages").glob("*.toml")):
        found.update((english.strip(" "), chinese) for english, chinese in parse_toml(file.read_bytes())["messages"])
    return found
