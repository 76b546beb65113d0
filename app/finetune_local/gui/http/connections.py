"""Limits on the number and age of connections, so that no program can block the server by opening many and sending nothing.

By itself, uvicorn waits indefinitely for a request's first line, accepts any number of connections, and writes a traceback for each
one once the process has no file descriptors left. Here a connection has a few seconds to send its request. Beyond the maximum, the
oldest connection that never presented the cookie is closed first.
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
"""Time for a request's head, counted from the start of the connection or from its last response."""

BODY_SECONDS = 30.0
"""Longest pause within a request's body."""

BACKLOG = 64
"""Connections that may wait to be accepted. This many can be accepted before the limit is checked."""

MOST = 256
_RESERVED_FILES = 96
"""File descriptors reserved for the app itself."""

_REQUESTED_FILES = 4096


def most_connections() -> int:
    """The maximum number of connections. Raises the process's soft limit on open files first, as far as the system allows."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return MOST
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = _REQUESTED_FILES if hard == resource.RLIM_INFINITY else min(hard, _REQUESTED_FILES)
    if soft != resource.RLIM_INFINITY and soft < target:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
        soft = target
    return MOST if soft == resource.RLIM_INFINITY else max(8, min(MOST, soft - BACKLOG - _RESERVED_FILES))


class Limits:
    """The open connections of one server, at most `most`."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._open: dict[Limited, None] = {}
        """An ordered set, the oldest first."""
        self._sweeping = False

    def protocol(self) -> type[H11Protocol]:
        """The class that uvicorn instantiates for each connection."""
        limits = self

        class OfThisServer(Limited):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                self.limits = limits

        return OfThisServer

    def add(self, new: Limited) -> None:
        """Add a connection. If there are too many, close one that waits for a request, preferably one that was never admitted."""
        self._open[new] = None
        if len(self._open) > self.most:
            idle = [one for one in self._open if one.idle_since is not None]
            strangers = [one for one in idle if not one.known.admitted]
            self._close(next(iter(strangers or idle), new))
        if not self._sweeping:
            self._sweeping = True
            new.loop.call_later(1.0, self._sweep, new.loop)

    def remove(self, connection: Limited) -> None:
        """Remove a connection."""
        self._open.pop(connection, None)

    def _close(self, connection: Limited) -> None:
        self.remove(connection)
        connection.transport.abort()

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for one in list(self._open):
            if one.late(now):
                self._close(one)
        self._sweeping = bool(self._open)
        if self._open:
            loop.call_later(1.0, self._sweep, loop)


class Limited(H11Protocol):
    """uvicorn's HTTP protocol with timeouts for requests."""

    limits: Limits

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.known = Connection()
        self.app_state = {**self.app_state, "connection": self.known}
        self._idle_since = self._received = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timeout of the first request."""
        super().connection_made(transport)
        self._idle_since = self._received = self.loop.time()
        self.limits.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self.limits.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Restart the timeout of the body."""
        self._received = self.loop.time()
        super().data_received(data)

    def on_response_complete(self) -> None:
        """Start the timeout of the next request."""
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer an invalid request, unless its response has begun or may have no body (HEAD). What the app still sends is discarded."""
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:
            self.transport.close()

    @property
    def idle_since(self) -> float | None:
        """When the connection began to wait for a request; None while a response is pending."""
        return self._idle_since if self.cycle is None or self.cycle.response_complete else None

    def late(self, now: float) -> bool:
        """Whether the client has taken too long to send a request."""
        if (since := self.idle_since) is not None:
            return now - since > HEAD_SECONDS
        return self.cycle.more_body and not self.flow.read_paused and now - self._received > BODY_SECONDS


class RateLimit(logging.Filter):
    """Passes at most `most` log lines per `seconds`, and appends to the next one how many were dropped. Without it, any program on the
    machine could fill the log."""

    def __init__(self, most: int = 20, seconds: float = 60.0) -> None:
        super().__init__()
        self._most, self._seconds = most, seconds
        self._since, self._count = -seconds, 0

    def filter(self, record: logging.LogRecord) -> bool:
        """See logging.Filter."""
        now = time.monotonic()
        if now - self._since > self._seconds:
            dropped = max(0, self._count - self._most)
            self._since, self._count = now, 0
            if dropped:
                record.msg, record.args = f"{record.getMessage()} (and {dropped} lines like this before)", ()
        self._count += 1
        return self._count <= self._most


def limit_logs() -> None:
    """Rate-limit the lines that uvicorn and asyncio log about connections."""
    for name in ("uvicorn.error", "asyncio"):
        logger = logging.getLogger(name)
        if not any(isinstance(one, RateLimit) for one in logger.filters):
            logger.addFilter(RateLimit())
