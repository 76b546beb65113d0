"""Token ids to text as they come: whole characters only, also where one Chinese character takes several tokens."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

_BROKEN = "\ufffd"


class Streamer:
    """Push ids one by one; what comes back, joined, is the text of all of them.

    A text that ends in a broken character is held back until it is whole. Each decoding starts at the last piece that was
    given out, so that the cost does not grow with the text and a leading space is neither lost nor added.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._shown = 0
        """Ids whose text has been given out; those before stay only as the next ids' context."""

    def push(self, token: int) -> str:
        """The text that became whole with this token, often "" or one word."""
        self._ids.append(token)
        return self._new(hold=True)

    def finish(self) -> str:
        """What was held back; a character the model never finished comes out as U+FFFD."""
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
    """Text by text, each with the ids it stands for, several where a character takes several; joined they are the text of all.

    No piece reaches over an index in `ends`.
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
