"""Whose process is at the other end of a connection from this machine.

A browser is given the launch link on its command line, where every user of the machine can read it for a moment. So that nobody
is quicker than the browser, the link counts only for the user it was made for. Linux tells whose a connection is; on the others
the link is only single-use.
"""

from __future__ import annotations

import os
from pathlib import Path

CONNECTIONS = Path("/proc/net/tcp")
_LOOPBACK = "0100007F"
_ROOT = 0


def is_another_user_s(client_port: int, server_port: int, connections: Path = CONNECTIONS) -> bool:
    """Whether the process that connected to `server_port` of 127.0.0.1 is certainly another user's; root may be anybody's helper."""
    if not hasattr(os, "geteuid"):
        return False
    client, server = f"{_LOOPBACK}:{client_port:04X}", f"{_LOOPBACK}:{server_port:04X}"
    try:
        lines = connections.read_text("ascii").splitlines()[1:]
    except (OSError, UnicodeDecodeError):
        return False
    for line in lines:
        columns = line.split()
        if len(columns) > 7 and columns[1:3] == [client, server]:
            return int(columns[7]) not in (os.geteuid(), _ROOT)
    return False
