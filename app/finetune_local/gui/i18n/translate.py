"""Sentences of the app's core, which are written in English where they are raised, in the language of the window.

The files in assets/messages hold them as templates beside their Chinese:

    messages = [["{path}: there is no such file.", "{path}：没有这个文件。"], …]
    phrases = [["for {n} rows", "按 {n} 行数据"], …]

What stands for a place is put in as it is: it is a name, a number, a piece of the user's data. Where it is the core's own words, a
reason within a note, the place is written {*reason}, and what stands for it is translated in turn; *phrases* are looked for only there,
because a few words such as "is missing" could as well be a part of a file's name.

A text that fits no template as a whole is taken apart where sentences end and at ": " and "; ", such that as much as possible of it
fits. What fits nothing stays as it is; before ": " it is the name of what the sentence is about, so templates need not begin with
"{path}: ". A place at an end of the English is at the same end of the Chinese, so that a name with ": " in it does not fall apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache

from finetune_local.gui.i18n.strings import Strings
from finetune_local.system.paths import assets
from finetune_local.system.untrusted.text import parse_toml

_PLACE = re.compile(r"\{(\*?\w+)\}")
_BREAK = re.compile(r"(?<=[.!?…])\s+|: |; ")
_LIST = re.compile(r", | and ")
_LONGEST = 2000
"""Characters of a line; a longer one is no sentence of the core."""
_BREAKS = 24
_DEPTH = 3
TRIES = 3000
"""Comparisons of a text with a template that one line is worth; a sentence of the core takes some tens."""
_WIDE: Mapping[str, str] = {": ": "：", "; ": "；"}


def sentence(t: Strings, text: str) -> str:
    """A text of one or several lines in the window's language."""
    if t.language == "en" or not text:
        return text
    return "\n".join(fit(line).text for line in text.split("\n"))


@dataclass(frozen=True)
class Fit:
    """A line as far as it could be translated.

    `weight` is how many characters were the templates', `names` are what stood before ": " and was taken for the name of something,
    `tail` is what fitted nothing at its end; `clean` is whether all before that fitted.
    """

    text: str
    weight: int = 0
    tail: str = ""
    clean: bool = True
    names: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether every sentence of it fitted a template."""
        return self.clean and not self.tail


@lru_cache(maxsize=1024)
def fit(line: str, *, inside: bool = False) -> Fit:
    """A line in Chinese, or as it is where nothing in it fits. `inside`: as what stands for a place that is translated in turn."""
    stripped = line.strip()
    if not stripped or len(line) > _LONGEST:
        return Fit(line, tail=line)
    reading = _Reading(stripped)
    found = reading.said(stripped, _DEPTH) if inside else reading.taken_apart(stripped, _DEPTH, inside=False)
    return replace(found, text=line.replace(stripped, found.text)) if found.weight else Fit(line, tail=line)


@dataclass(frozen=True)
class Template:
    """An English text with places and its Chinese. `pieces` are the texts between the places, one more than there are `places`."""

    english: str
    chinese: str
    phrase: bool
    pieces: tuple[str, ...]
    places: tuple[str, ...]
    longest: str
    weight: int

    def values(self, text: str) -> dict[str, str] | None:
        """What stands for each place in a text, or None where it does not fit. Takes the leftmost fit, in linear time."""
        first, *between, last = self.pieces if self.places else (self.english, "")
        if not self.places:
            return {} if text == first else None
        at, end = len(first), len(text) - len(last)
        if not (text.startswith(first) and text.endswith(last)):
            return None
        found: dict[str, str] = {}
        for place, piece in zip(self.places, [*between, None], strict=True):
            to = end if piece is None else text.find(piece, at + 1, end)
            if to <= at or found.setdefault(place, text[at:to]) != text[at:to]:
                return None
            at = to + len(piece or "")
        return found

    def filled(self, values: Mapping[str, str]) -> str:
        """The Chinese with its places filled."""
        return _PLACE.sub(lambda found: values[found[1]], self.chinese)


@cache
def templates() -> tuple[Template, ...]:
    """Every template of assets/messages."""
    found = []
    for file in sorted((assets() / "messages").glob("*.toml")):
        lists = parse_toml(file.read_bytes())
        for name in ("phrases", "messages"):  # inside a sentence a phrase goes before a message of the same words
            found += [_template(english, chinese, name == "phrases") for english, chinese in lists.get(name, ())]
    return tuple(found)


def _template(english: str, chinese: str, phrase: bool) -> Template:
    parts = _PLACE.split(english)
    pieces = tuple(parts[::2])
    weight = sum(len(piece) - piece.count(" ") for piece in pieces)
    return Template(english, chinese, phrase, pieces, tuple(parts[1::2]), max(pieces, key=len), weight)


class _Reading:
    """The search for templates in one line. It ends after so many tries: what a hostile line would cost more than that stays as it
    is."""

    def __init__(self, line: str) -> None:
        self._near = [template for template in templates() if template.longest in line]
        self._known: dict[tuple[str, bool], Fit] = {}
        self.tries = 0

    def taken_apart(self, text: str, depth: int, *, inside: bool) -> Fit:
        """The best way to cut a text into pieces that fit: with the most of the templates' words, then with the fewest pieces."""
        if self.tries > TRIES:
            return Fit(text, tail=text)
        breaks = list(_BREAK.finditer(text))[:_BREAKS]
        starts = [0, *(found.end() for found in breaks)]
        ends = [*(found.start() for found in breaks), len(text)]
        best: list[tuple[tuple[int, int], Fit]] = [((0, 0), Fit(""))]
        for last, end in enumerate(ends):
            ways = []
            for first in range(last + 1):
                piece = self._fitted(text[starts[first] : end], depth, inside=inside)
                (weight, cuts), before = best[first]
                between = text[ends[first - 1] : starts[first]] if first else ""
                ways.append(((weight + piece.weight, cuts - 1), _joined(before, between, piece)))
            best.append(max(ways, key=lambda way: way[0]))
        return best[-1][1]

    def said(self, text: str, depth: int) -> Fit:
        """The core's own words within a sentence: a phrase, sentences, or several phrases in a row."""
        found = self.taken_apart(text, depth, inside=True)
        if found.whole or not (separators := _LIST.findall(text)):
            return found
        parts = [self._fitted(part, depth, inside=True) for part in _LIST.split(text)]
        if not all(part.whole for part in parts):
            return found
        between = ["和" if separator == " and " else "、" for separator in separators]
        listed = "".join(part.text + mark for part, mark in zip(parts, [*between, ""], strict=True))
        return Fit(listed, sum(part.weight for part in parts))

    def _fitted(self, text: str, depth: int, *, inside: bool) -> Fit:
        """A text that is not to be cut, by the template that has the most words in common with it."""
        self.tries += 1
        if (text, inside) in self._known:
            return self._known[text, inside]
        best = Fit(text, tail=text)
        for template in self._near:
            if template.phrase and not inside:
                continue
            self.tries += 1
            if self.tries > TRIES or (values := template.values(text)) is None:
                continue
            weight = template.weight
            for place, value in values.items():
                if place.startswith("*") and depth:
                    said = self.said(value, depth - 1)
                    values[place], weight = said.text, weight + said.weight
            if weight > best.weight:
                best = Fit(template.filled(values), weight)
        self._known[text, inside] = best
        return best


def _joined(left: Fit, between: str, right: Fit) -> Fit:
    named = between == ": " and left.tail and not right.tail
    if left.weight or right.weight:
        between = _WIDE.get(between, "" if left.text.endswith(("。", "！", "？")) else between)
    return Fit(
        left.text + between + right.text,
        left.weight + right.weight,
        right.tail,
        left.clean and right.clean and bool(named or not left.tail),
        (*left.names, left.tail, *right.names) if named else left.names + right.names,
    )
