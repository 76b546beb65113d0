"""Whose program has connected: asked of the system with real sockets of one's own and of another user's."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psutil
import pytest

from finetune_local.gui.http import guard, peer
from finetune_local.gui.http.guard import Access, Guard
from finetune_local.gui.http.peer import Connection, Peer, owner_of

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="/proc/net/tcp is Linux's")
NOBODY = 65534
OTHERS_PYTHON = Path("/usr/bin/python3")
"""Another user may not enter where this test's own Python lies."""

CONNECT = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[2] else socket.AF_INET
s = socket.socket(family)
s.bind((sys.argv[1], 0))
s.connect((sys.argv[2], int(sys.argv[3])))
sys.stdin.read()
"""
WAYS = [
    ("127.0.0.1", "127.0.0.1"),
    ("127.0.0.2", "127.0.0.1"),
    ("127.255.255.254", "127.0.0.1"),
    ("::ffff:127.0.0.1", "::ffff:127.0.0.1"),
    ("::ffff:127.0.0.2", "::ffff:127.0.0.1"),
    ("::1", "::1"),
]
"""From which address to which: a socket of IPv6 that maps IPv4 stands in another table."""

Accepted = tuple[socket.socket, tuple[str, int], tuple[str, int]]


def connected(source: str, target: str, user: int | None) -> Iterator[Accepted]:
    """A server's side of a connection that a process of a user's own makes."""
    with socket.socket(socket.AF_INET6 if target == "::1" else socket.AF_INET) as server:
        server.bind(("::1" if target == "::1" else "127.0.0.1", 0))
        server.listen()
        server.settimeout(30)
        command = [str(OTHERS_PYTHON) if user else sys.executable, "-c", CONNECT, source, target]
        client = subprocess.Popen([*command, str(server.getsockname()[1])], stdin=subprocess.PIPE, user=user)
        accepted, address = server.accept()
        with accepted:
            yield accepted, address[:2], accepted.getsockname()[:2]
        client.communicate()


@LINUX
@pytest.mark.parametrize(("source", "target"), WAYS)
@pytest.mark.parametrize("user", [None, NOBODY])
def test_a_real_connection_of_one_s_own_and_of_another_s(source: str, target: str, user: int | None) -> None:
    if user and (os.geteuid() != 0 or not OTHERS_PYTHON.exists()):
        pytest.skip("only root can be another user too")
    if ":" in target and not Path("/proc/net/tcp6").exists():
        pytest.skip("no IPv6 here")
    for _, client, server in connected(source, target, user):
        assert owner_of(client, server) is (Peer.ANOTHER if user else Peer.OWN)
        # macOS and Windows look for the process instead, and cannot look into another user's.
        asked = [(ip_address(ip), port) for ip, port in (client, server)]
        plain = [(getattr(ip, "ipv4_mapped", None) or ip, port) for ip, port in asked]
        assert peer.by_processes(*plain) is (Peer.UNKNOWN if user else Peer.OWN)


@LINUX
def test_a_connection_whose_other_end_is_gone_is_nobody_s() -> None:
    """The system shows what is left of a closed socket as root's."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client = socket.create_connection(server.getsockname())
        accepted, address = server.accept()
        with accepted:
            assert owner_of(address, accepted.getsockname()) is Peer.OWN
            client.close()
            assert owner_of(address, accepted.getsockname()) is Peer.UNKNOWN


def test_a_process_that_was_found_and_has_ended_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = (ip_address("127.0.0.1"), 1), (ip_address("127.0.0.1"), 2)
    monkeypatch.setattr(psutil, "pid_exists", lambda _: True)
    monkeypatch.setattr(psutil, "process_iter", lambda: iter(()))
    monkeypatch.setattr(peer, "_last", [2**30])
    assert peer.by_processes(here, there) is Peer.UNKNOWN


@LINUX
@pytest.mark.parametrize(
    ("client", "server"),
    [
        (None, ("127.0.0.1", 80)),
        (("127.0.0.1", 1), None),
        (("127.0.0.1", 1), ("127.0.0.1", 2)),
        (("10.0.0.1", 1), ("127.0.0.1", 2)),
        (("testclient", 1), ("127.0.0.1", 2)),
        (("::1%lo", 1), ("::1", 2)),
    ],
)
def test_what_is_not_found_or_makes_no_sense_is_not_one_s_own(client: Any, server: Any) -> None:
    assert owner_of(client, server) is Peer.UNKNOWN


def test_tables_that_cannot_be_read_say_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = (ip_address("127.0.0.1"), 1), (ip_address("127.0.0.1"), 2)
    with pytest.raises(OSError, match="none"):
        peer.by_tables(here, there, (tmp_path / "none",))
    monkeypatch.setattr(peer, "LINUX", True)
    monkeypatch.setattr(peer, "by_tables", lambda *_: (_ for _ in ()).throw(PermissionError()))
    assert owner_of(("127.0.0.1", 1), ("127.0.0.1", 2)) is Peer.UNKNOWN
    monkeypatch.setenv(peer.TRUST, "1")  # the user says that nobody else is here
    assert owner_of(("127.0.0.1", 1), ("127.0.0.1", 2)) is Peer.OWN


def asked(access: Access, path: str, connection: Connection, **more: Any) -> tuple[int, str]:
    told: list[dict[str, Any]] = []

    async def page(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def send(message: Any) -> None:
        told.append(message)

    scope = {"type": "http", "path": path, "method": "GET", "query_string": b"", "headers": [(b"host", b"127.0.0.1:4711")],
             "client": ("127.0.0.1", 5000), "server": ("127.0.0.1", 4711), "state": {"connection": connection}, **more}  # fmt: skip
    asyncio.run(Guard(page, access)(scope, page, send))
    return told[0]["status"], told[1]["body"].decode()


def test_every_request_of_another_user_s_is_refused_and_a_link_stays_good(monkeypatch: pytest.MonkeyPatch) -> None:
    access = Access(4711)
    token = access.link().partition("t=")[2]
    cookie = access.set_cookie().partition(b";")[0]
    link = {"query_string": f"t={token}".encode()}
    known = {"headers": [(b"host", b"127.0.0.1:4711"), (b"cookie", cookie)]}
    for found, word in ((Peer.ANOTHER, "another user"), (Peer.UNKNOWN, peer.TRUST)):
        monkeypatch.setattr(guard, "owner_of", lambda *_, found=found: found)
        for path, more in (("/", {}), ("/control", {"method": "POST"}), (f"{access.path}/config", known)):
            status, text = asked(access, path, Connection(), **more)
            assert status == 403 and word in text
        assert asked(access, f"{access.path}/open", Connection(), **link)[0] == 403
    monkeypatch.setattr(guard, "owner_of", lambda *_: Peer.OWN)
    assert asked(access, f"{access.path}/config", Connection(), **known)[0] == 200
    assert asked(access, f"{access.path}/open", Connection(), **link)[0] == 303


def test_it_is_asked_once_for_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[Any] = []
    monkeypatch.setattr(guard, "owner_of", lambda *given: times.append(given) or Peer.OWN)
    access, one = Access(4711), Connection()
    for _ in range(3):
        asked(access, "/", one)
    asked(access, "/", Connection())
    assert times == [(("127.0.0.1", 5000), ("127.0.0.1", 4711))] * 2
