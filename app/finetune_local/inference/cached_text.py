"""A growing text and its key/value cache, kept between the turns of a chat; one for each adapter that answers in it."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_local.backend import Decoder, Session
from finetune_local.spec.batch import Floats

KEPT = 4
"""Caches that are kept at once: as many as can answer side by side."""


class RunningText:
    """Feeds a decoder only what it has not seen; begins a new one where the text changed before its end.

    It may be fed only while the adapter is active under which it began: a cache belongs to its adapter.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
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
    """One running text for each adapter (None: the base), so that swapping back and forth costs no second reading."""

    def __init__(self, kept: int = KEPT) -> None:
        """`kept`: beyond that many the one unused for longest is dropped."""
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
        """Drop one: another adapter may come under its name."""
        self._texts.pop(adapter, None)

    def clear(self) -> None:
        """Drop all, where memory is short."""
        self._texts.clear()
