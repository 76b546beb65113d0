"""Metrics of evaluations: one file each, found by listing this folder; and how they normalise texts.

A metric is a module with
    METRIC: Metric        its key, its titles, and how an answer is compared with its reference
The window, the command line, the verdict and saved evaluations read everything they show from it. Chinese titles are in
assets/strings/metrics.toml; a metric without them is shown in English.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

from finetune_local.system.fields import declared, in_order

DEFAULT = "exact"
"""The verdict's metric unless the user chooses another."""

# Scripts without spaces between words: Han, kana, bopomofo, Southeast Asian scripts. Each character is a token.
_UNSPACED = (
    "\u3005-\u3007\u3040-\u30ff\u3100-\u312f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
)
_TOKEN = re.compile(f"[{_UNSPACED}]|[^\\s{_UNSPACED}]+")
_ARTICLES = frozenset({"a", "an", "the"})


@dataclass(frozen=True)
class Metric:
    """`title` is shown in choices, `short` above columns, `phrase` in sentences of the verdict.

    `compare(answer, reference)` returns a share from 0 to 1; higher is better. None marks the loss of the reference, in nats per
    token; lower is better.
    """

    key: str
    title: str
    short: str
    phrase: str
    order: int
    compare: Callable[[str, str], float] | None

    @property
    def is_loss(self) -> bool:
        """Whether it is a loss in nats per token (lower is better) rather than a share (higher is better)."""
        return self.compare is None


@cache
def metrics() -> Mapping[str, Metric]:
    """All metrics by key, in display order."""
    return in_order(declared(__name__, "METRIC", Metric))


def text_metrics() -> Mapping[str, Metric]:
    """The metrics that compare an answer with its reference."""
    return {key: one for key, one in metrics().items() if not one.is_loss}


def loss_metric() -> Metric:
    """The loss of the reference."""
    return next(one for one in metrics().values() if one.is_loss)


def compare_texts(answer: str, reference: str) -> dict[str, float]:
    """The text metrics of one answer, by key."""
    return {key: one.compare(answer, reference) for key, one in metrics().items() if one.compare is not None}


def normalise(text: str) -> str:
    """Unicode NFC without surrounding whitespace."""
    return unicodedata.normalize("NFC", text).strip()


def tokens(text: str) -> list[str]:
    """Lower-case words without punctuation and English articles; single characters in scripts without spaces between words."""
    lowered = normalise(text).lower()
    kept = "".join(c for c in lowered if c not in string.punctuation and not unicodedata.category(c).startswith("P"))
    return [token for token in _TOKEN.findall(kept) if token not in _ARTICLES]
