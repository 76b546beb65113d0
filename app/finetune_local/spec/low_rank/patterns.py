"""Per-layer overrides of a number: "q_proj=8" on the command line, `rank_pattern` and `alpha_pattern` in PEFT's config."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from functools import lru_cache

from finetune_local.system.errors import SpecError
from finetune_local.system.messages import msg

_PLAIN = re.compile(r"[\w.-]*")
_LONGEST = 1.0
"""Seconds allowed for matching one regular expression against one name; a good one takes microseconds."""

_LONGEST_IN_ALL = 5.0


def number_of(patterns: Iterable[str], module: str) -> float | None:
    """The number of the first pattern that matches the module; None if none does.

    As in PEFT, a pattern is a regular expression matched against the full name or its end after a dot.
    """
    for pattern in patterns:
        name, number = _parts(pattern)
        if matches(name, module):
            return number
    return None


@lru_cache(maxsize=1 << 16)
def matches(name: str, module: str) -> bool:
    """Whether a pattern matches a module. Raises SpecError if it is no regular expression or takes too long."""
    whole = rf"(.*\.)?({name})$"
    try:
        if _PLAIN.fullmatch(name):
            return re.match(whole, module) is not None
        re.compile(whole)
        import regex  # of the same language, with a limit of time: (a+)+b can take years

        return regex.match(whole, module, timeout=_LONGEST) is not None
    except TimeoutError:
        raise SpecError(
            msg(
                "the pattern {pattern} takes more than a second to match against {module}. Use the layer's name "
                "instead.",
                pattern=repr(name[:80]),
                module=module,
            )
        ) from None
    except (re.error, ValueError, RecursionError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise SpecError(
            msg(
                "the pattern {pattern} is not a valid regular expression ({error}). Use the layer's name.",
                pattern=repr(name[:80]),
                error=reason,
            )
        ) from None


def check(patterns: Iterable[str], flag: str, whole: bool) -> None:
    """Raise ValueError if an entry is not NAME=NUMBER with a number above 0, an integer if required."""
    for pattern in patterns:
        kind = msg("a whole number above 0") if whole else msg("a number above 0")
        try:
            name, number = _parts(pattern)
            re.compile(name)
        except (ValueError, re.error, RecursionError, OverflowError):
            raise ValueError(
                msg(
                    "{flag} {pattern} is not valid. Write NAME={kind}, such as q_proj=8.",
                    flag=flag,
                    pattern=repr(pattern),
                    kind=kind,
                )
            ) from None
        if not name or number <= 0 or (whole and number != int(number)):
            raise ValueError(
                msg(
                    "{flag} {pattern}: the value after = must be {kind}, such as q_proj=8.",
                    flag=flag,
                    pattern=repr(pattern),
                    kind=kind,
                )
            )


def unmatched(patterns: Iterable[str], modules: Iterable[str]) -> str | None:
    """The first pattern that matches none of the modules, or None."""
    known = list(modules)
    names = (_parts(pattern)[0] for pattern in patterns)
    return next((name for name in names if not any(matches(name, module) for module in known)), None)


def times(patterns: Iterable[str], factor: float) -> tuple[str, ...]:
    """The patterns with their numbers multiplied."""
    return from_mapping({name: number * factor for name, number in map(_parts, patterns)})


def resolved(values: Mapping[str, float], modules: Iterable[str], common: float) -> tuple[str, ...]:
    """A file's patterns resolved to full module names, listing only numbers that differ from the common one; the first match counts.

    Raises SpecError if matching takes too long.
    """
    until = time.monotonic() + _LONGEST_IN_ALL
    plain = {name: at for at, name in enumerate(values) if _PLAIN.fullmatch(name)}
    others = {at: name for at, name in enumerate(values) if name not in plain}
    numbers, found = list(values.values()), dict[str, float]()
    for module in modules:
        ends = [module] + [module[at + 1 :] for at, letter in enumerate(module) if letter == "."]
        matching = [plain[end] for end in ends if end in plain]
        for at, name in others.items():
            if matches(name, module):
                matching.append(at)
                break
            if time.monotonic() > until:
                raise SpecError(
                    msg("its {number} patterns take too long to match against its layers.", number=len(values))
                )
        if matching and numbers[min(matching)] != common:
            found[module] = numbers[min(matching)]
    return from_mapping(found)


def as_mapping(patterns: Iterable[str]) -> dict[str, float]:
    """Patterns as PEFT writes them, integers as int; the first entry of a name counts."""
    result: dict[str, float] = {}
    for name, number in map(_parts, patterns):
        result.setdefault(name, int(number) if number == int(number) else number)
    return result


def from_mapping(values: Mapping[str, float]) -> tuple[str, ...]:
    """The inverse of as_mapping()."""
    return tuple(f"{name}={int(number) if number == int(number) else number!r}" for name, number in values.items())


def _parts(pattern: str) -> tuple[str, float]:
    name, _, number = pattern.rpartition("=")  # a regular expression may contain a =
    return name, float(number)
