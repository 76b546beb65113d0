"""What an evaluation measures: one file per metric, found by listing this folder.

A metric is a module with
    METRIC: Metric        its key, its words, and how an answer is compared with its reference
The window, the command line, the verdict and the kept evaluations read all they show from it. Its Chinese words are in
assets/strings/metrics.toml; a metric without any appears by its English ones.
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
"""What the verdict rests on where nothing else is chosen."""


@dataclass(frozen=True)
class Metric:
    """`title` is its name in a choice, `short` over a column, `phrase` within a sentence of the verdict.

    `compare(answer, reference)` is from 0 to 1, more is better; None marks the loss of the reference, which is measured by
    the model itself in nats per token, less is better.
    """

    key: str
    title: str
    short: str
    phrase: str
    order: int
    compare: Callable[[str, str], float] | None

    @property
    def is_loss(self) -> bool:
        """Whether it is measured in nats per token, less is better; all others are shares, more is better."""
        return self.compare is None


@cache
def metrics() -> Mapping[str, Metric]:
    """Every metric by its key, in the order they are shown."""
    return in_order(declared(__name__, "METRIC"))


def text_metrics() -> Mapping[str, Metric]:
    """The metrics that compare an answer with its reference."""
    return {key: one for key, one in metrics().items() if not one.is_loss}


def loss_metric() -> Metric:
    """The loss of the reference."""
    return next(one for one in metrics().values() if one.is_loss)


def compare_texts(answer: str, reference: str) -> dict[str, float]:
    """Every text metric of one answer, by its key."""
    return {key: one.compare(answer, reference) for key, one in metrics().items() if one.compare is not None}


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
