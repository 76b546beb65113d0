"""Limits on the number and age of connections, so that nobody can block the server by opening many and sending nothing.

uvicorn by itself waits for ever for a request's first line, takes as many connections as come, and when the system has no file left
for another writes a traceback for each. Here a connection has seconds to say what it wants; where there are too many, the
oldest of those that were never let in goes first.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from finetune_local.gui.http.peer import Connection

HEAD_SECONDS = 10.0
"""Seconds for a request's head, counted from the connection or its last response."""

BODY_SECONDS = 30.0
"""Seconds without a byte of a body that was announced."""

BACKLOG = 64
"""Connections that may wait to be taken; so many are taken before the limit is looked at."""

MOST = 256
_OWN_FILES = 96
"""Files that the app itself has open at most."""

_WANTED_FILES = 4096


def room_for_files() -> int:
    """The most connections to hold, after asking for as many files as the system lets a program have."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return MOST
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED_FILES if hard == resource.RLIM_INFINITY else min(hard, _WANTED_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return MOST if soft == resource.RLIM_INFINITY else max(8, min(MOST, soft - BACKLOG - _OWN_FILES))


class Limits:
    """All connections of one server, at most `most`."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._held: dict[Limited, None] = {}
        """In the order they came."""
        self._sweeping = False

    def protocol(self) -> type[H11Protocol]:
        """The protocol for each connection."""
        limits = self

        class OfThisServer(Limited):
            def __init__(self, *given: Any, **named: Any) -> None:
                super().__init__(*given, **named)
                self.limits = limits

        return OfThisServer

    def add(self, made: Limited) -> None:
        """Add a connection; where there are too many, another one is closed."""
        self._held[made] = None
        if len(self._held) > self.most:
            idle = [one for one in self._held if one.idle_since is not None]
            strangers = [one for one in idle if not one.known.admitted]
            self._end(next(iter(strangers or idle), made))
        if not self._sweeping:
            self._sweeping = True
            made.loop.call_later(1.0, self._sweep, made.loop)

    def gone(self, one: Limited) -> None:
        """Remove a connection."""
        self._held.pop(one, None)

    def _end(self, one: Limited) -> None:
        self.gone(one)
        one.transport.abort()

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for one in list(self._held):
            if one.late(now):
                self._end(one)
        self._sweeping = bool(self._held)
        if self._held:
            loop.call_later(1.0, self._sweep, loop)


class Limited(H11Protocol):
    """uvicorn's HTTP protocol with timeouts."""

    limits: Limits

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.known = Connection()
        self.app_state = {**self.app_state, "connection": self.known}
        self._since = self._heard = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timeout."""
        super().connection_made(transport)
        self._since = self._heard = self.loop.time()
        self.limits.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        self.limits.gone(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Data has arrived."""
        self._heard = self.loop.time()
        super().data_received(data)

    def on_response_complete(self) -> None:
        """Start the timeout again."""
        self._since = self.loop.time()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Nothing can be said of a body that turns out wrong where the answer was given already, or has no body (HEAD); and what
        the app still says to it goes nowhere."""
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:
            self.transport.close()

    @property
    def idle_since(self) -> float | None:
        """Since when it has nothing to answer; None while it has."""
        return self._since if self.cycle is None or self.cycle.response_complete else None

    def late(self, now: float) -> bool:
        """Whether its request has taken too long."""
        if (since := self.idle_since) is not None:
            return now - since > HEAD_SECONDS
        return self.cycle.more_body and not self.flow.read_paused and now - self._heard > BODY_SECONDS


class FewWords(logging.Filter):
    """Lets `most` lines of a log through in a minute, and then says how many it kept back: anybody on the machine can make the
    server complain."""

    def __init__(self, most: int = 20, seconds: float = 60.0) -> None:
        super().__init__()
        self._most, self._seconds = most, seconds
        self._since, self._count = -seconds, 0

    def filter(self, record: logging.LogRecord) -> bool:
        """See logging.Filter."""
        now = time.monotonic()
        if now - self._since > self._seconds:
            kept_back = max(0, self._count - self._most)
            self._since, self._count = now, 0
            if kept_back:
                record.msg, record.args = f"{record.getMessage()} (and {kept_back} lines like this before)", ()
        self._count += 1
        return self._count <= self._most


def say_little() -> None:
    """Limit what uvicorn and asyncio write of connections."""
    for name in ("uvicorn.error", "asyncio"):
        logger = logging.getLogger(name)
        if not any(isinstance(one, FewWords) for one in logger.filters):
            logger.addFilter(FewWords())
