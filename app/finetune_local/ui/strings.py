"""The window's words: one table in assets/strings, English and Chinese side by side.

A file `train.toml` holds the keys "train.*", each a list of two: [English, Chinese]. "{name}" is filled in; "one row|{n} rows"
is the form for n = 1 and the one for all others.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

from finetune_local.paths import strings as strings_folder

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")


@cache
def table() -> Mapping[str, tuple[str, str]]:
    """Every string by its key."""
    found: dict[str, tuple[str, str]] = {}
    for file in sorted(strings_folder().glob("*.toml")):
        for key, pair in _flat(tomllib.loads(file.read_text("utf-8"))):
            if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
                raise RuntimeError(f"{file.name}: '{key}' is not a list of an English and a Chinese string")
            found[f"{file.stem}.{key}"] = (pair[0], pair[1])
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
    """The words of one language: `t("train.start")`."""

    def __init__(self, language: Language) -> None:
        self.language = language
        self._column = LANGUAGES.index(language)

    def __call__(self, key: str, **values: Any) -> str:
        """The string of a key, filled in. Raises KeyError for one that is not in the table."""
        text = table()[key][self._column]
        if "|" in text and "n" in values:
            one, _, many = text.partition("|")
            text = one if values["n"] in (1, "1") else many
        return text.format_map(values) if values else text

    def get(self, key: str) -> str | None:
        """The string, or None where there is none: for words that stand for what the spec declares."""
        pair = table().get(key)
        return pair[self._column] if pair else None
