"""Which user owns the other end of a connection from this machine. Checked once for each connection, before anything is answered.

The server listens on a loopback address, which every user of the machine can reach, by any of its names (127.0.0.1, 127.0.0.2, an IPv6
socket that maps them). The connection's other socket is on this machine too, and the system says whose it is:

- Linux: /proc/net/tcp and tcp6 name the user of each socket. The app's own user is let in, and root, who can read everything anyway
  and whose relays (WSL's, a container's) speak for the user.
- macOS, Windows: the process that holds the other socket is looked for; it must be one of the user's own.

What is not found, or cannot be asked, is refused. On a system that hides its sockets (Android does) the user has to say, by an
environment variable, that nobody else is on the machine.
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
"""Environment variable: 1 where nobody else uses this machine, and whose a connection is cannot be found out."""

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
    """What is known of a connection, for all of its requests: scope["state"]["connection"]."""

    peer: Peer | None = None
    admitted: bool = False
    """Whether one of its requests had the cookie."""


def whose(client: Address | None, server: Address | None) -> Peer:
    """Whose program has connected: `client` is its address, `server` ours, both as the accepted socket has them."""
    if os.environ.get(TRUST) == "1":
        return Peer.OWN
    if client is None or server is None:
        return Peer.UNKNOWN
    try:
        here, there = _plain(client[0]), _plain(server[0])
        if not (here.is_loopback and there.is_loopback):
            return Peer.UNKNOWN
        if LINUX:
            return by_tables((here, client[1]), (there, server[1]))
        return by_processes((here, client[1]), (there, server[1]))
    except (OSError, ValueError):
        return Peer.UNKNOWN


_Found = tuple[IPv4Address | IPv6Address, int]


def by_tables(client: _Found, server: _Found, tables: tuple[Path, ...] = TABLES) -> Peer:
    """Linux: the user of the socket whose own address is `client`. Raises OSError, ValueError where the tables cannot be read."""
    wanted = {(mine, theirs) for mine, theirs in zip(_written(client), _written(server), strict=True)}
    for table in tables:
        if table is not tables[0] and not table.exists():
            continue  # a system without IPv6
        for line in table.read_text("ascii").splitlines()[1:]:
            columns = line.split()
            # A socket that nobody holds any more (inode 0) is shown as root's.
            if len(columns) > 9 and (columns[1], columns[2]) in wanted and columns[9] != "0":
                return Peer.OWN if int(columns[7]) in (os.geteuid(), _ROOT) else Peer.ANOTHER
    return Peer.UNKNOWN


def by_processes(client: _Found, server: _Found) -> Peer:
    """macOS and Windows: whether a process of the user's own holds the other socket. Others' processes cannot be looked into, so
    theirs is not found."""
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
"""The process that was found last: a browser's connections come from one."""


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
    """As the tables write an address: words in the machine's byte order; an IPv4 address also as an IPv6 socket has it."""
    ip, port = address
    forms = [ip.packed]
    if isinstance(ip, IPv4Address):
        forms.append(bytes(10) + b"\xff\xff" + ip.packed)
    return [
        "".join(f"{int.from_bytes(form[at : at + 4], sys.byteorder):08X}" for at in range(0, len(form), 4))
        + f":{port:04X}"
        for form in forms
    ]
