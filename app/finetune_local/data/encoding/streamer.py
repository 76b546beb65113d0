"""Streaming detokenization: whole characters only, also if one Chinese character takes several tokens."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

_BROKEN = "\ufffd"


class Streamer:
    """Push ids one at a time; the returned pieces joined are the text of all ids.

    A piece that ends in an incomplete character is withheld until it is complete. Decoding starts at the last returned piece, so the cost
    does not grow with the text and a leading space is neither lost nor added.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._shown = 0
        """Ids whose text has been returned; kept only as context for the next ids."""

    def push(self, token: int) -> str:
        """The text completed by this token, often "" or one word."""
        self._ids.append(token)
        return self._new(hold=True)

    def finish(self) -> str:
        """The withheld text; a character the model never finished becomes U+FFFD."""
        return self._new(hold=False)

    def _new(self, *, hold: bool) -> str:
        known, text = self._decode(self._ids[: self._shown]), self._decode(self._ids)
        if len(text) <= len(known) or (hold and text.endswith(_BROKEN)):
            return ""
        self._ids, self._shown = self._ids[self._shown :], len(self._ids) - self._shown
        return text[len(known) :]


def streamed(
    decode: Callable[[Sequence[int]], str], ids: Sequence[int], ends: Collection[int] = ()
) -> list[tuple[str, list[int]]]:
    """Pieces of text with the ids they stand for, several if a character takes several; joined they are the text of all ids.

    No piece crosses an index in `ends`.
    """
    streamer = Streamer(decode)
    found: list[tuple[str, list[int]]] = []
    waiting: list[int] = []
    for index, one in enumerate(ids):
        if waiting and index in ends:
            found.append((streamer.finish(), waiting))
            waiting = []
        waiting.append(one)
        if text := streamer.push(one):
            found.append((text, waiting))
            waiting = []
    return [*found, (streamer.finish(), waiting)] if waiting else found
