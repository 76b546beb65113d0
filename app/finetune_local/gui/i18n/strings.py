"""The strings of the interface, from assets/strings, with English and Chinese side by side.

A file `train.toml` has the keys "train.*", each with a list of two strings: [English, Chinese]. "{name}" is replaced by a value;
"one row|{n} rows" has one form for n = 1 and one for all other numbers.

The files of DECLARED have the Chinese only. The English of settings, methods, models and export targets is declared once, where they
are defined (spec/, export/, models.json); `get()` returns None for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

from finetune_local.system.paths import strings as strings_folder
from finetune_local.system.untrusted.text import parse_toml

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")
DECLARED = ("catalog", "help", "methods", "metrics", "quants", "targets")
"""Files (without .toml) whose English is declared in the code."""

Pair = tuple[str | None, str]
"""English and Chinese. The English is None if it is declared in the code."""


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
