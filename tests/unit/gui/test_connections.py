"""Whoever opens many connections and says nothing stops nobody, and fills no log."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import uvicorn

from finetune_local.gui.http import connections
from finetune_local.gui.http.connections import BACKLOG, Limits, RateLimit
from finetune_local.gui.http.peer import Connection

MOST = 8


async def app(scope: Any, receive: Any, send: Any) -> None:
    """/in: lets the connection in. /read: takes a body. /hold: an answer that does not end."""
    known: Connection = scope["state"]["connection"]
    known.admitted = known.admitted or scope["path"] == "/in"
    body = b""
    while scope["path"] == "/read" and (message := await receive())["type"] == "http.request":
        body += message["body"]
        if not message["more_body"]:
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/hold":
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
    await send({"type": "http.response.body", "body": str(len(body)).encode()})


class Serving:
    """A server with limits, in a thread."""

    def __init__(self) -> None:
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, http=Limits(MOST).protocol(), ws="none", lifespan="off", log_level="critical", backlog=BACKLOG)  # fmt: skip
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=lambda: asyncio.run(self.server._serve([self.socket])))
        self.thread.start()
        self.sockets = ExitStack()
        while not self.server.started:
            time.sleep(0.01)

    def open(self, text: str = "") -> socket.socket:
        found = self.sockets.enter_context(socket.create_connection(self.socket.getsockname(), timeout=5))
        found.sendall(text.encode())
        return found

    def ask(self, path: str, more: str = "") -> socket.socket:
        return self.open(f"GET {path} HTTP/1.1\r\nHost: x\r\n{more}\r\n")


@pytest.fixture
def server() -> Iterator[Serving]:
    made = Serving()
    yield made
    made.sockets.close()
    made.server.should_exit = True
    made.thread.join(10)
    made.socket.close()


def answered(client: socket.socket) -> bool:
    return client.recv(12) == b"HTTP/1.1 200"


def ended(client: socket.socket) -> bool:
    try:
        return client.recv(1000) == b""
    except ConnectionResetError:
        return True


def test_a_request_that_never_ends_is_ended(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.6)
    monkeypatch.setattr(connections, "BODY_SECONDS", 0.6)
    silent, half = server.open(), server.open("GET / HTTP/1.1\r\nX: ")
    body = server.open("POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nx")
    held = server.ask("/hold")
    drops = 0
    began = time.monotonic()
    while drops < 40 and time.monotonic() - began < 5:
        try:
            half.sendall(b"x")  # slow letters are no request either
        except OSError:
            break
        drops += 1
        time.sleep(0.1)
    assert 3 < drops < 40
    assert ended(silent) and ended(body)
    assert answered(held)
    held.settimeout(0.2)
    with pytest.raises(TimeoutError):  # an answer that goes on is let go on
        while True:
            held.recv(1000)


def test_a_body_that_turns_out_wrong_ends_the_connection(server: Serving, caplog: pytest.LogCaptureFixture) -> None:
    wrong = "Host: x\r\nTransfer-Encoding: chunked\r\n\r\n[[[[\r\n"
    for request in (f"HEAD / HTTP/1.1\r\n{wrong}", f"POST /hold HTTP/1.1\r\n{wrong}", f"GET / HTTP/1.1\r\n{wrong}"):
        client = server.open(request)
        while not ended(client):
            pass
    assert "Traceback" not in caplog.text and not [r for r in caplog.records if r.exc_info]


def test_where_there_are_too_many_those_never_let_in_go_first(server: Serving) -> None:
    known = server.ask("/in")
    assert answered(known)
    while not known.recv(1000).endswith(b"0\r\n\r\n"):
        pass
    held = [server.ask("/hold") for _ in range(2)]
    assert all(answered(one) for one in held)
    idle = [server.open("GET /") for _ in range(MOST * 3)]
    new = server.ask("/")
    assert answered(new)
    assert ended(idle[0]) and ended(idle[5])
    known.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answered(known)
    for one in held:
        one.settimeout(0.1)
        with pytest.raises(TimeoutError):
            while one.recv(1000):
                pass


def test_where_all_are_at_work_the_newest_is_not_taken(server: Serving) -> None:
    held = [server.ask("/hold") for _ in range(MOST)]
    assert all(answered(one) for one in held)
    assert ended(server.open())


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limit")
def test_as_many_are_held_as_there_are_files() -> None:
    script = (
        "import resource, sys; soft, hard = map(int, sys.argv[1:]); resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard));"
        "from finetune_local.gui.http.connections import most_connections; print(most_connections(), resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )

    def room(soft: int, hard: int) -> list[int]:
        command = [sys.executable, "-c", script, str(soft), str(hard)]
        return [int(word) for word in subprocess.run(command, capture_output=True, check=True).stdout.split()]

    assert room(256, 256) == [96, 256]
    assert room(256, 1024) == [256, 1024]  # more are asked for where the system lets a program have them
    assert room(64, 64) == [8, 64]


def test_a_log_says_little(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(connections.time, "monotonic", lambda: now[0])
    limit = RateLimit(most=3, seconds=60)

    def passed(times: int) -> list[str]:
        records = [logging.LogRecord("x", 30, "", 0, "no %s", ("file",), None) for _ in range(times)]
        return [record.getMessage() for record in records if limit.filter(record)]

    assert passed(1000) == ["no file"] * 3
    now[0] = 61.0
    assert passed(1) == ["no file (and 997 lines like this before)"]
    now[0] = 122.0
    assert passed(1) == ["no file"]
