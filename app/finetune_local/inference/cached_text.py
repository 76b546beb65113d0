"""A growing text and its key/value cache, kept between the turns of a chat; one for each adapter that answers."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_local.backend import Decoder, Session
from finetune_local.spec.batch import Floats

KEPT = 4
"""Caches that are kept at a time: as many as can answer side by side."""


class RunningText:
    """Feeds a decoder only the new tokens; starts a new one where the text changed before its end.

    A cache belongs to its adapter: feed it only while that adapter is active.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._decoder: Decoder | None = None
        self._fed: list[int] = []

    def reset(self) -> None:
        """Drop the cache."""
        self._decoder, self._fed = None, []

    def logits(self, session: Session, ids: Sequence[int]) -> Floats:
        """Logits after the last of `ids`, (vocabulary,)."""
        decoder, known = self._decoder, len(self._fed)
        if decoder is None or known >= len(ids) or list(ids[:known]) != self._fed:
            decoder, known = session.decoder(), 0
        self.reset()  # until the feed is through: one that fails or is interrupted leaves the cache half written
        logits: Floats = decoder.feed([list(ids[known:])])[0]
        self._decoder, self._fed = decoder, list(ids)
        return logits


class RunningTexts:
    """One running text for each adapter (None: the base), so that swapping back and forth needs no second prefill."""

    def __init__(self, kept: int = KEPT) -> None:
        """At most `kept` texts; the least recently used is dropped."""
        self._kept = kept
        self._texts: dict[str | None, RunningText] = {}

    def of(self, adapter: str | None) -> RunningText:
        """The text of the adapter that is active now."""
        text = self._texts.pop(adapter, None) or RunningText()
        self._texts[adapter] = text
        while len(self._texts) > self._kept:
            del self._texts[next(iter(self._texts))]
        return text

    def forget(self, adapter: str | None) -> None:
        """Drop one: its name may be given to another adapter."""
        self._texts.pop(adapter, None)

    def clear(self) -> None:
        """Drop all, where memory is short."""
        self._texts.clear()
