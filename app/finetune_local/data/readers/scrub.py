"""Personal data in texts: detected by its form, counted, and on request replaced by a placeholder such as [email].

Only data with a recognisable form is found: addresses, numbers, keys. Names, street addresses and birthdays are not. Numbers with a
checksum (cards, IBANs, Chinese identity numbers) are verified, so that other long numbers are left alone.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import get_args

from finetune_local.data.conversation import Conversation
from finetune_local.spec.run import Personal

KINDS: tuple[str, ...] = tuple(kind for kind in get_args(Personal) if kind != "all")
"""All kinds, in the order of the setting's choices."""

Span = tuple[int, int]

# Each begins where a run of its characters begins and is bounded, so that no text takes more than linear time.
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9_%+-][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b"
)
_CREDENTIALS = re.compile(r"(?<=://)[^\s/@:\"'<>]{1,128}:[^\s/@\"'<>]{1,256}(?=@)")
_KEYS = re.compile(
    r"(?<![A-Za-z0-9_-])(?:"
    r"sk-[A-Za-z0-9_-]{20,200}|[srp]k_(?:live|test)_[A-Za-z0-9]{16,200}|gh[pousr]_[A-Za-z0-9]{30,255}"
    r"|github_pat_[A-Za-z0-9_]{22,255}|glpat-[A-Za-z0-9_-]{20,64}|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[A-Za-z0-9_-]{35}"
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,200}|hf_[A-Za-z0-9]{30,64}|npm_[A-Za-z0-9]{36}"
    r"|eyJ[A-Za-z0-9_-]{8,4096}\.eyJ[A-Za-z0-9_-]{8,4096}\.[A-Za-z0-9_-]{8,4096}"
    r")(?![A-Za-z0-9_-])"
)
_KEY_MARKS = ("sk-", "k_live_", "k_test_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "AKIA", "ASIA", "AIza",
              "xox", "hf_", "npm_", "eyJ")  # fmt: skip
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----")
_KEY_LENGTH = 8192
_ASSIGNED = re.compile(
    r"(?:password|passwd|passwort|secret|api[_ -]?key|access[_ -]?token|auth[_ -]?token|密码|密钥)"
    r"[\"']?\s{0,3}(?:[:=：]|is|是)\s{0,3}[\"']?(?P<value>(?=[^\s\"']{0,63}\d)(?=[^\s\"']{0,63}[A-Za-z])[A-Za-z0-9+/_.=!#$%&*-]{10,200})",
    re.IGNORECASE,
)
_ASSIGNED_MARKS = ("pass", "secret", "api", "token", "密码", "密钥")
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}")
_IBAN_LENGTHS: Mapping[str, int] = {
    "AD": 24, "AE": 23, "AT": 20, "BE": 16, "BG": 22, "BR": 29, "CH": 21, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "EE": 20,
    "ES": 24, "FI": 18, "FR": 27, "GB": 22, "GR": 27, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IS": 26, "IT": 27, "LI": 21,
    "LT": 20, "LU": 20, "LV": 21, "MC": 27, "MT": 31, "NL": 18, "NO": 15, "PL": 28, "PT": 25, "RO": 24, "RS": 22, "SA": 24,
    "SE": 24, "SI": 19, "SK": 24, "TR": 26, "UA": 29,
}  # fmt: skip
_CHINESE_ID = re.compile(
    r"(?<![0-9A-Za-z])[1-9]\d{5}(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?![0-9A-Za-z])"
)
_SOCIAL_SECURITY = re.compile(r"(?<![\d-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])")
_CARD = re.compile(r"(?<![\d.-])[2-6]\d{3}(?:[ -]?\d){9,15}(?![\d-])")
_PHONE = re.compile(
    r"(?=[\d+(])(?<![\d+])(?:"
    r"(?:\+?86[ -]?)?1[3-9]\d[ -]?\d{4}[ -]?\d{4}(?!\d)"  # Chinese mobile
    r"|\+\d++(?:[ ./-]{0,2}+\(?+\d++\)?+){0,7}+"  # with the country's code; possessive, so that it never goes back
    r"|(?<![.,-])(?:\(0\d{1,4}\) ?|0\d{1,4}[ /-]{1,3})(?:\d{5,8}|\d{3,5}(?:[ -]\d{2,5}){1,3})(?![\d-])"  # with a leading zero
    r"|(?<![.,-])0\d(?:[ .]\d{2}){4}(?![\d-])"  # French
    r"|(?<![.,-])(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[.-]\d{4}(?![\d-])"  # North American
    r")"
)
_PHONE_DIGITS = range(8, 16)
_IPV4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\d.]*\d)")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])")


def kinds_of(chosen: Iterable[str]) -> frozenset[str]:
    """The kinds a setting selects; "all" is every one."""
    kinds = frozenset(chosen)
    return frozenset(KINDS) if "all" in kinds else kinds


def scrubbed(conversation: Conversation, kinds: Collection[str], found: Counter[str]) -> Conversation:
    """The conversation with those kinds replaced; counts of every kind, replaced or not, are added to `found`."""
    messages = tuple(
        message if (text := scrub(message.content, kinds, found)) == message.content else replace(message, content=text)
        for message in conversation.messages
    )
    plain = None if conversation.text is None else scrub(conversation.text, kinds, found)
    worse = conversation.rejected
    if worse is not None:
        worse = replace(worse, content=scrub(worse.content, kinds, found))
    return replace(conversation, messages=messages, text=plain, rejected=worse)


def scrub(text: str, kinds: Collection[str], found: Counter[str]) -> str:
    """A text with data of those kinds replaced by placeholders; see scrubbed()."""
    result, at = list[str](), 0
    for start, end, kind in _spans(text):
        found[kind] += 1
        if kind in kinds:
            result += [text[at:start], f"[{kind}]"]
            at = end
    return "".join([*result, text[at:]]) if result else text


def _spans(text: str) -> list[tuple[int, int, str]]:
    """Spans in order without overlaps; kinds tried first take precedence."""
    digits = sum(map(text.count, "0123456789"))
    taken: list[tuple[int, int, str]] = []
    for kind, finder, least, marks in _FINDERS:
        # Most texts contain few digits and no marks, and need no search.
        if digits >= least and (not marks or _has(text, marks)) and (found := list(finder(text))):
            taken = _merged(taken, found, kind)
    return taken


def _has(text: str, marks: Sequence[str]) -> bool:
    for mark in marks:  # noqa: SIM110 - several times as fast as any() with a generator, on every text of the data
        if mark in text:
            return True
    return False


def _merged(taken: Sequence[tuple[int, int, str]], found: Iterable[Span], kind: str) -> list[tuple[int, int, str]]:
    """The accepted spans and those of `found` that do not overlap them, in order. Linear in both."""
    result, at = list[tuple[int, int, str]](), 0
    for start, end in found:
        while at < len(taken) and taken[at][1] <= start:
            result.append(taken[at])
            at += 1
        if (not result or result[-1][1] <= start) and (at == len(taken) or end <= taken[at][0]):
            result.append((start, end, kind))
    return [*result, *taken[at:]]


def _private_keys(text: str) -> Iterator[Span]:
    for match in _PRIVATE_KEY.finditer(text):
        last = text.find("-----END", match.end(), match.end() + _KEY_LENGTH)
        close = text.find("KEY-----", last, last + 60) if last >= 0 else -1
        if close >= 0:
            yield match.start(), close + len("KEY-----")


def _known_keys(text: str) -> Iterator[Span]:
    yield from (m.span() for m in _KEYS.finditer(text))


def _assigned(text: str) -> Iterator[Span]:
    if _has(text.lower(), _ASSIGNED_MARKS):
        yield from (m.span("value") for m in _ASSIGNED.finditer(text))


def _credentials(text: str) -> Iterator[Span]:
    yield from (m.span() for m in _CREDENTIALS.finditer(text))


def _emails(text: str) -> Iterator[Span]:
    yield from (m.span() for m in _EMAIL.finditer(text))


def _ibans(text: str) -> Iterator[Span]:
    for match in _IBAN.finditer(text):
        length = _IBAN_LENGTHS.get(match[0][:2])
        places = [at for at, c in enumerate(match[0]) if c != " "]
        if length is None or len(places) < length:
            continue
        end = places[length - 1] + 1  # the pattern may have taken words in capitals after it
        number = match[0][:end].replace(" ", "")
        whole = not text[match.start() + end : match.start() + end + 1].isalnum()
        if whole and int("".join(str(int(c, 36)) for c in number[4:] + number[:4])) % 97 == 1:
            yield match.start(), match.start() + end


def _chinese_identities(text: str) -> Iterator[Span]:
    for match in _CHINESE_ID.finditer(text):
        weighed = sum(int(digit) * (1 << (17 - i)) for i, digit in enumerate(match[0][:17]))
        if "10X98765432"[weighed % 11] == match[0][17].upper():
            yield match.span()


def _social_security(text: str) -> Iterator[Span]:
    yield from (m.span() for m in _SOCIAL_SECURITY.finditer(text))


def _cards(text: str) -> Iterator[Span]:
    yield from (m.span() for m in _CARD.finditer(text) if _luhn(re.sub(r"\D", "", m[0])))


def _phones(text: str) -> Iterator[Span]:
    for match in _PHONE.finditer(text):
        if sum(c.isdigit() for c in match[0]) in _PHONE_DIGITS:
            yield match.span()


def _ipv4(text: str) -> Iterator[Span]:
    """IP addresses, except loopback and unspecified ones."""
    for match in _IPV4.finditer(text) if text.count(".") > 2 else ():
        parts = [int(part) for part in match[0].split(".")]
        if max(parts) <= 255 and parts[0] not in (0, 127, 255):
            yield match.span()


def _ipv6(text: str) -> Iterator[Span]:
    for match in _IPV6.finditer(text) if text.count(":") > 1 else ():
        groups = [group for group in match[0].split(":") if group]
        if len(groups) >= 3 and any(c.isdigit() for c in match[0]) and _is_ipv6(match[0]):
            yield match.span()


_FINDERS: Sequence[tuple[str, Callable[[str], Iterable[Span]], int, Sequence[str]]] = (
    ("key", _private_keys, 0, ("PRIVATE KEY-----",)),
    ("key", _known_keys, 0, _KEY_MARKS),
    ("key", _assigned, 1, ()),
    ("credentials", _credentials, 0, ("://",)),
    ("email", _emails, 0, ("@",)),
    ("iban", _ibans, 2, ()),
    ("id", _chinese_identities, 9, ()),
    ("id", _social_security, 9, ("-",)),
    ("card", _cards, 13, ()),
    ("phone", _phones, 8, ()),
    ("ip", _ipv4, 3, (".",)),
    ("ip", _ipv6, 3, (":",)),
)
"""Kinds in order of precedence: how each is found, the fewest digits of a text with one, and characters it always contains."""


def _luhn(digits: str) -> bool:
    doubled = sum(sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (doubled + sum(int(digit) for digit in digits[-1::-2])) % 10 == 0 and len(set(digits)) > 1


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True
