"""Numbers that some layers have instead of the common one: "q_proj=8" on the command line, PEFT's rank_pattern on disk."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping


def number_of(patterns: Iterable[str], module: str) -> float | None:
    """The number of the first pattern that stands for a module; None where none does.

    As in PEFT a name is a regular expression that the whole name, or its end after a dot, matches.
    """
    for pattern in patterns:
        name, number = _parts(pattern)
        if matches(name, module):
            return number
    return None


def matches(name: str, module: str) -> bool:
    """Whether a pattern's name stands for a module."""
    return re.match(rf"(.*\.)?({name})$", module) is not None


def check(patterns: Iterable[str], flag: str, whole: bool) -> None:
    """Raise ValueError where one is not NAME=NUMBER with a number above 0 (a whole one where asked for)."""
    for pattern in patterns:
        kind = "a whole number above 0" if whole else "a number above 0"
        try:
            name, number = _parts(pattern)
            re.compile(name)
        except (ValueError, re.error):
            raise ValueError(f"{flag} {pattern!r} is not understood. Write NAME={kind}, such as q_proj=8.") from None
        if not name or number <= 0 or (whole and number != int(number)):
            raise ValueError(f"{flag} {pattern!r}: what follows = must be {kind}, such as q_proj=8.")


def unmatched(patterns: Iterable[str], modules: Iterable[str]) -> str | None:
    """The first name that stands for none of the modules."""
    known = list(modules)
    names = (_parts(pattern)[0] for pattern in patterns)
    return next((name for name in names if not any(matches(name, module) for module in known)), None)


def times(patterns: Iterable[str], factor: float) -> tuple[str, ...]:
    """The same patterns with their numbers multiplied."""
    return from_mapping({name: number * factor for name, number in map(_parts, patterns)})


def as_mapping(patterns: Iterable[str]) -> dict[str, float]:
    """As PEFT writes them, whole numbers as such; of a name given twice the first counts."""
    result: dict[str, float] = {}
    for name, number in map(_parts, patterns):
        result.setdefault(name, int(number) if number == int(number) else number)
    return result


def from_mapping(values: Mapping[str, float]) -> tuple[str, ...]:
    """What as_mapping() gave."""
    return tuple(f"{name}={int(number) if number == int(number) else number!r}" for name, number in values.items())


def _parts(pattern: str) -> tuple[str, float]:
    name, _, number = pattern.rpartition("=")  # a regular expression may have a = of its own
    return name, float(number)
