"""Which user owns the other end of a local connection. Checked once per connection, before any request is answered.

The server listens on a loopback address, which every user of the machine can reach under several names (127.0.0.1, 127.0.0.2, a
mapped IPv6 address). The client's socket is on this machine too, and the operating system reports its owner:

- Linux: /proc/net/tcp and tcp6 list the user of each socket. The app's user is admitted, and root, who can read everything anyway and
  whose relays (WSL's, a container's) act for the user.
- macOS, Windows: one of the user's processes must own the client's socket.

A connection whose owner cannot be found is refused. On a system that hides its sockets, such as Android, an environment variable
declares that the machine has no other users.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

TRUST = "FINETUNE_LOCAL_TRUST_THIS_MACHINE"
"""Environment variable: "1" admits every local connection, for a machine with one user whose system hides its sockets."""

TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
LINUX = sys.platform == "linux"
_ROOT = 0

Address = tuple[str, int]


class Peer(Enum):
    """The owner of a connection."""

    OWN = "own"
    ANOTHER = "another"
    UNKNOWN = "unknown"


@dataclass
class Connection:
    """What is known about a connection, shared by all of its requests as scope["state"]["connection"]."""

    peer: Peer | None = None
    admitted: bool = False
    """Whether one of its requests carried the cookie."""


def owner_of(client: Address | None, server: Address | None) -> Peer:
    """The owner of the program that has connected. `client` and `server` are the two addresses of the accepted socket."""
    if os.environ.get(TRUST) == "1":
        return Peer.OWN
    if client is None or server is None:
        return Peer.UNKNOWN
    try:
        client_ip, server_ip = _plain(client[0]), _plain(server[0])
        if not (client_ip.is_loopback and server_ip.is_loopback):
            return Peer.UNKNOWN
        if LINUX:
            return by_tables((client_ip, client[1]), (server_ip, server[1]))
        return by_processes((client_ip, client[1]), (server_ip, server[1]))
    except (OSError, ValueError):
        return Peer.UNKNOWN


_Found = tuple[IPv4Address | IPv6Address, int]


def by_tables(client: _Found, server: _Found, tables: tuple[Path, ...] = TABLES) -> Peer:
    """Linux: the owner of the socket with local address `client`. Raises OSError, ValueError if the tables cannot be read."""
    pairs = {(mine, theirs) for mine, theirs in zip(_written(client), _written(server), strict=True)}
    for table in tables:
        if table is not tables[0] and not table.exists():
            continue  # a system without IPv6
        for line in table.read_text("ascii").splitlines()[1:]:
            columns = line.split()
            # A socket that no process has open any more (inode 0) is listed as root's.
            if len(columns) > 9 and (columns[1], columns[2]) in pairs and columns[9] != "0":
                return Peer.OWN if int(columns[7]) in (os.geteuid(), _ROOT) else Peer.ANOTHER
    return Peer.UNKNOWN


def by_processes(client: _Found, server: _Found) -> Peer:
    """macOS and Windows: whether one of the user's processes has the client's socket open. The sockets of other users' processes cannot
    be listed, so the result is OWN or UNKNOWN."""
    import psutil

    user = psutil.Process().username()
    for process in _likely_first(psutil.process_iter(), psutil):
        try:
            if process.username() != user:
                continue
            for one in process.net_connections(kind="tcp"):
                if one.raddr and (_address(one.laddr), _address(one.raddr)) == (client, server):
                    _last[:] = [process.pid]
                    return Peer.OWN
        except (psutil.Error, OSError, ValueError):
            continue
    return Peer.UNKNOWN


_last: list[int] = []
"""The process that was found last. All connections of a browser come from one process, so it is checked first."""


def _likely_first(processes: Iterator[Any], psutil: Any) -> Iterator[Any]:
    for pid in _last:
        with suppress(psutil.Error):  # it may have ended by now
            yield psutil.Process(pid)
    yield from processes


def _plain(address: str) -> IPv4Address | IPv6Address:
    found = ip_address(address)
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return mapped or found


def _address(found: Any) -> _Found:
    return _plain(found.ip), found.port


def _written(address: _Found) -> list[str]:
    """An address as the tables write it: 32-bit words in the machine's byte order; an IPv4 address also in its mapped IPv6 form."""
    ip, port = address
    forms = [ip.packed]
    if isinstance(ip, IPv4Address):
        forms.append(bytes(10) + b"\xff\xff" + ip.packed)
    return [
        "".join(f"{int.from_bytes(form[at : at + 4], sys.byteorder):08X}" for at in range(0, len(form), 4))
        + f":{port:04X}"
        for form in forms
    ]
