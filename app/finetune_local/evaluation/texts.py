"""Texts as metrics compare them, in any language."""

from __future__ import annotations

import re
import string
import unicodedata

# Scripts written without spaces: Han, kana, bopomofo, and those of Southeast Asia. Each character is a token.
_UNSPACED = (
    "\u3005-\u3007\u3040-\u30ff\u3100-\u312f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
)
_TOKEN = re.compile(f"[{_UNSPACED}]|[^\\s{_UNSPACED}]+")
_ARTICLES = frozenset({"a", "an", "the"})


def normalise(text: str) -> str:
    """NFC without surrounding space: what counts as the same text."""
    return unicodedata.normalize("NFC", text).strip()


def tokens(text: str) -> list[str]:
    """Words in lower case without punctuation and English articles; single characters in scripts without spaces between words."""
    lowered = normalise(text).lower()
    kept = "".join(c for c in lowered if c not in string.punctuation and not unicodedata.category(c).startswith("P"))
    return [token for token in _TOKEN.findall(kept) if token not in _ARTICLES]
