"""Refuses the network to a Python process: imported by it at start when this folder is on PYTHONPATH, or by a test.

Only local (AF_UNIX) sockets may connect; looking a name up is refused too.
"""

from __future__ import annotations

import socket
from typing import Any


class NetworkRefused(AssertionError):
    """Something tried to reach the network where nothing may. Not an OSError, so that no retry swallows it."""


def refuse(patch: Any = setattr) -> None:
    """Make every connection and look-up fail; `patch(object, name, value)` sets the attributes."""

    def guarded(name: str) -> Any:
        original = getattr(socket.socket, name)

        def connect(self: socket.socket, address: Any, *rest: Any) -> Any:
            if self.family == getattr(socket, "AF_UNIX", None):
                return original(self, address, *rest)
            raise NetworkRefused(f"a connection to {address} was tried, but this must work without the network")

        return connect

    def look_up(host: Any, *rest: Any, **more: Any) -> Any:
        raise NetworkRefused(f"the address of {host!r} was looked up, but this must work without the network")

    for name in ("connect", "connect_ex"):
        patch(socket.socket, name, guarded(name))
    for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "create_connection"):
        patch(socket, name, look_up)


if __name__ == "sitecustomize":
    refuse()
