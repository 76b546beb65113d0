"""How one answer compares with its reference: pure text, in any language."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter

METRICS = ("exact", "contains", "f1")
"""What `compare_texts` gives, each from 0 to 1, more is better."""

# Scripts written without spaces: Han, kana, bopomofo, and the ones of Southeast Asia. Each character is a token.
_UNSPACED = (
    "\u3005-\u3007\u3040-\u30ff\u3100-\u312f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
)
_TOKEN = re.compile(f"[{_UNSPACED}]|[^\\s{_UNSPACED}]+")
_ARTICLES = frozenset({"a", "an", "the"})


def normalise(text: str) -> str:
    """NFC without surrounding space: what counts as the same text."""
    return unicodedata.normalize("NFC", text).strip()


def exact(answer: str, reference: str) -> float:
    """1 where both are the same text."""
    return float(normalise(answer) == normalise(reference))


def contains(answer: str, reference: str) -> float:
    """1 where the reference stands somewhere in the answer."""
    return float(normalise(reference) in normalise(answer))


def f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall over tokens, order aside.

    As in SQuAD (Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1: case, punctuation and English articles are
    ignored), with single characters as tokens in scripts that do not put spaces between words.
    """
    given, wanted = Counter(tokens(answer)), Counter(tokens(reference))
    if not given or not wanted:
        return exact(answer, reference)
    shared = (given & wanted).total()
    return 2 * shared / (given.total() + wanted.total())


def tokens(text: str) -> list[str]:
    """The tokens f1 counts."""
    lowered = normalise(text).lower()
    kept = "".join(c for c in lowered if c not in string.punctuation and not unicodedata.category(c).startswith("P"))
    return [token for token in _TOKEN.findall(kept) if token not in _ARTICLES]


def compare_texts(answer: str, reference: str) -> dict[str, float]:
    """All metrics of one answer."""
    return {"exact": exact(answer, reference), "contains": contains(answer, reference), "f1": f1(answer, reference)}
