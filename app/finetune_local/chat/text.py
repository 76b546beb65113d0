"""One growing text and its key/value cache, kept between the turns of a chat."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_local.backend import Decoder, Floats, Session


class RunningText:
    """Feeds a decoder only what it has not seen; begins a new one where the text changed before its end.

    Forget it (`reset`) when another adapter is made active: a cache belongs to the adapter it was made under.
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
