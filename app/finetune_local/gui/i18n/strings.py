"""The strings of the interface: one table in assets/strings, English and Chinese side by side.

A file `train.toml` holds the keys "train.*", each a list of two: [English, Chinese]. "{name}" is filled in; "one row|{n} rows"
is the form for n = 1 and the one for all others.

The files of DECLARED hold the Chinese alone: what a setting, a method, a model, an export target is for is declared in
English once, where it belongs (spec/, export/, models.json), and is read from there; `get()` gives None for it in English.
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
"""English and Chinese; the English None where it is declared in the code."""


@cache
def table() -> Mapping[str, Pair]:
    """Every string by its key."""
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
        """The string of a key, filled in. Raises KeyError for one that is not in the table, or not in this language."""
        text = table()[key][self._column]
        if text is None:
            raise KeyError(f"{key} is declared in the code, and only its Chinese is in the table")
        if "|" in text and "n" in values:
            one, _, many = text.partition("|")
            text = one if values["n"] in (1, "1") else many
        return text.format_map(values) if values else text

    def get(self, key: str) -> str | None:
        """The string; None where this language has none, as the English is declared in the code."""
        pair = table().get(key)
        return pair[self._column] if pair else None
