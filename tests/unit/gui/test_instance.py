"""One app for a home: the second start finds the first, speaks to it, and takes the place of a dead one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from finetune_local.gui.window.instance import Instance
from finetune_local.system.errors import RunError
from finetune_local.system.paths import Home
from finetune_local.system.process import Process

KEY = "the key 钥匙".encode().hex()
Start = Callable[..., int]


@pytest.fixture
def server() -> Iterator[Start]:
    """Start something that answers control requests with the right key; returns its port."""
    servers: list[ThreadingHTTPServer] = []

    def start(answer: Callable[[str], str] = lambda do: f"asked: {do}") -> int:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                known = self.headers.get("x-finetune-local-key") == KEY
                body = answer(self.path.partition("do=")[2]).encode() if known else b"This is not for you."
                self.send_response(200 if known else 401)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                return

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return int(servers[-1].server_address[1])

    yield start
    for one in servers:
        one.shutdown()
        one.server_close()


@pytest.fixture
def other(home: Home) -> Iterator[subprocess.Popen[str]]:
    """Another process that is the app of the home."""
    code = (
        "import sys; from pathlib import Path; from finetune_local.system.paths import Home\n"
        "from finetune_local.gui.window.instance import Instance\n"
        "i = Instance(Home(Path(sys.argv[1]))); print(i.take(), flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(home.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == "True\n"
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def write(home: Home, pid: int, port: int, key: str = KEY, mark: str | None = None) -> None:
    known = {**Process.of(pid).as_json(), **({} if mark is None else {"mark": mark}), "port": port, "key": key}
    (home.window / "instance.json").write_text(json.dumps(known), "utf-8")


def test_the_first_takes_it_and_tells_its_user_only(home: Home) -> None:
    instance = Instance(home)
    assert instance.take()
    instance.publish(1234, "secret")
    file = home.window / "instance.json"
    assert json.loads(file.read_text("utf-8"))["port"] == 1234
    if os.name != "nt":
        assert file.stat().st_mode & 0o777 == 0o600
    assert not Instance(home).take()
    instance.release()
    assert not file.exists()
    assert Instance(home).take()


def test_the_second_is_answered_by_the_first(home: Home, server: Start, other: subprocess.Popen[str]) -> None:
    write(home, other.pid, server())
    second = Instance(home)
    assert not second.take()
    assert second.request("show") == "asked: show"


def test_a_killed_one_makes_room(home: Home, other: subprocess.Popen[str]) -> None:
    write(home, other.pid, 1)
    other.kill()
    other.wait()
    instance = Instance(home)
    assert instance.take()
    assert not (home.window / "instance.json").exists()


def test_one_that_does_not_answer_is_named(home: Home, server: Start, other: subprocess.Popen[str]) -> None:
    write(home, other.pid, server(), key="another key")
    with pytest.raises(RunError, match=rf"process {other.pid}\), but does not respond.*try again"):
        Instance(home).request("show", patience=0.3)


def test_one_that_is_only_starting_is_waited_for(home: Home, server: Start, other: subprocess.Popen[str]) -> None:
    port = server()
    threading.Timer(0.5, write, (home, other.pid, port)).start()
    assert Instance(home).request("link", patience=10) == "asked: link"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', "\x00"])
def test_a_damaged_file_counts_as_none(home: Home, text: str, other: subprocess.Popen[str]) -> None:
    (home.window / "instance.json").write_text(text, "utf-8")
    with pytest.raises(RunError, match="does not respond"):
        Instance(home).request("show", patience=0)


def test_quit_waits_for_the_end(home: Home, server: Start, other: subprocess.Popen[str]) -> None:
    def answer(_: str) -> str:
        threading.Timer(0.3, other.kill).start()
        return "{}"

    write(home, other.pid, server(answer))
    assert Instance(home).quit(patience=10)
    assert not Instance(home).quit()


def test_where_a_drive_knows_no_locks_the_file_tells(
    home: Home, server: Start, other: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_local.system.locks._try", lambda *_, **__: None)
    write(home, other.pid, server())
    assert not Instance(home).take()
    write(home, other.pid, server(), mark="of another")  # a later process of the same id
    assert Instance(home).take()
