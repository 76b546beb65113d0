"""Sentences of the app's core, which are written in English where they are raised, in the language of the window.

assets/messages.toml holds them as templates: "{path}: there is no such file." beside its Chinese. A sentence that fits no template
is shown as it is. What a placeholder stands for is translated in turn, so a reason within a note is too.
"""

from __future__ import annotations

import re
import tomllib
from functools import cache, lru_cache

from finetune_local.paths import assets
from finetune_local.ui.strings import Strings

_PLACE = re.compile(r"\{(\w+)\}")
_DEPTH = 3


def sentence(t: Strings, text: str) -> str:
    """A text of one or several lines in the window's language."""
    if t.language == "en" or not text:
        return text
    return "\n".join(_translated(line, _DEPTH) for line in text.split("\n"))


@lru_cache(maxsize=4096)
def _translated(text: str, depth: int) -> str:
    stripped = text.strip()
    for pattern, chinese in _patterns():
        if (found := pattern.fullmatch(stripped)) is not None:
            values = {k: _translated(v, depth - 1) if depth else v for k, v in found.groupdict().items()}
            return text.replace(stripped, chinese.format_map(values))
    return text


@cache
def _patterns() -> list[tuple[re.Pattern[str], str]]:
    """The most particular first: those with the most words of their own."""
    file = assets() / "messages.toml"
    if not file.exists():
        return []
    pairs = tomllib.loads(file.read_text("utf-8"))["messages"]
    pairs.sort(key=lambda pair: -len(_PLACE.sub("", pair[0])))
    return [(_pattern(english), chinese) for english, chinese in pairs]


def _pattern(template: str) -> re.Pattern[str]:
    parts = _PLACE.split(template)
    written = [re.escape(part) if i % 2 == 0 else f"(?P<{part}>.+?)" for i, part in enumerate(parts)]
    return re.compile("".join(written), re.DOTALL)
