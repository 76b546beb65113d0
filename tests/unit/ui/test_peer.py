"""A launch link counts only for the user it was made for."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from finetune_local.ui import guard
from finetune_local.ui.guard import Gate, Guard
from finetune_local.ui.peer import is_another_user_s

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
ROW = "   0: 0100007F:{client:04X} 0100007F:{server:04X} 01 00000000:00000000 00:00000000 00000000 {uid:>5}        0 1 1 0\n"


@pytest.mark.parametrize(
    ("uid", "other"), [(os.getuid() if hasattr(os, "getuid") else 0, False), (0, False), (64999, True)]
)
def test_whose_a_connection_is(tmp_path: Path, uid: int, other: bool) -> None:
    file = tmp_path / "tcp"
    file.write_text(
        HEAD + ROW.format(client=9, server=8, uid=64998) + ROW.format(client=4711, server=80, uid=uid), "ascii"
    )
    assert is_another_user_s(4711, 80, file) is (other and hasattr(os, "geteuid"))
    assert not is_another_user_s(4711, 81, file)
    assert not is_another_user_s(4711, 80, tmp_path / "none")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/net/tcp is Linux's")
def test_a_real_connection_of_one_s_own_and_of_another() -> None:
    connect = "import socket, sys; s = socket.create_connection(('127.0.0.1', int(sys.argv[1]))); sys.stdin.read()"
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        for user in (None, 65534) if os.geteuid() == 0 else (None,):
            command = ["/usr/bin/python3" if user else sys.executable, "-c", connect, str(port)]
            if user and not Path(command[0]).exists():
                continue
            client = subprocess.Popen(command, stdin=subprocess.PIPE, user=user)
            server.settimeout(30)
            accepted, (_, client_port) = server.accept()
            assert is_another_user_s(client_port, port) is (user is not None)
            accepted.close()
            client.communicate()


def test_another_user_s_link_is_refused_and_stays_good(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, told = Gate(4711), list[dict[str, Any]]()
    token = gate.link().partition("t=")[2]

    async def page(*_: Any) -> None:
        pytest.fail("it came through")

    async def send(message: Any) -> None:
        told.append(message)

    scope = {"type": "http", "path": "/open", "method": "GET", "query_string": f"t={token}".encode(),
             "headers": [(b"host", b"127.0.0.1:4711")], "client": ("127.0.0.1", 5000)}  # fmt: skip
    monkeypatch.setattr(guard, "is_another_user_s", lambda client, server: (client, server) == (5000, 4711))
    asyncio.run(Guard(page, gate)(scope, page, send))
    assert told[0]["status"] == 403
    monkeypatch.setattr(guard, "is_another_user_s", lambda *_: False)
    told.clear()
    asyncio.run(Guard(page, gate)(scope, page, send))
    assert told[0]["status"] == 303
