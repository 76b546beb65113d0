"""The window's server, with and without its cookie: requests that no browser writes. None may be answered with 5xx, none may wait, and
nothing may be written that looks like a traceback.

The whole of it runs as it does for the user, in a thread: sockets, uvicorn, the guard, Gradio with the app's page and its events.
"""

from __future__ import annotations

import json
import os
import random
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

from fuzz.mutate import AWKWARD, mutate_bytes, mutate_json_text

COUNTS = (200, 30_000)
_SECONDS = 8.0

_METHODS = ("GET", "GET", "POST", "HEAD", "PUT", "OPTIONS", "get", "")
_PATHS = (
    "/", "/config", "/open", "/control", "/theme.css", "/favicon.ico", "/manifest.json", "/assets/x.js", "/static/x", "/svelte/x",
    "/gradio_api/startup-events", "/gradio_api/queue/join", "/gradio_api/queue/data", "/gradio_api/cancel", "/gradio_api/reset",
    "/gradio_api/upload", "/gradio_api/upload_progress", "/gradio_api/file=/etc/passwd", "/gradio_api/file=http://name.example/",
    "/gradio_api/info", "/gradio_api/component_server", "/gradio_api/proxy=http://name.example/", "/ftl/alive", "/ftl/app.js",
)  # fmt: skip
_PIECES = (
    "%",
    "%00",
    "%ff",
    "%2e%2e/",
    "../",
    "//",
    "\\",
    "?",
    "#",
    "%C3%A9",
    "%ud800",
    "a" * 300,
    ";",
    "\x7f",
    "http://x/",
    "=",
    "&",
)
_HEADERS = (
    "Range: bytes=0-", "Range: bytes=" + "9" * 5000 + "-", "Content-Type: multipart/form-data", "Content-Type: application/json",
    "Transfer-Encoding: chunked", "Content-Length: 5", "Content-Length: -1", "Content-Length: 0", "X-Forwarded-For: 10.0.0.1",
    "X-Forwarded-Host: name.example", "X-Gradio-Server: http://name.example", "Cookie: a=\xe9; =; ;", "Cookie: " + "a=b; " * 900,
    "Expect: 100-continue", "Upgrade: websocket", "Connection: Upgrade", "If-None-Match: x", "If-Modified-Since: never", "Accept: \xff",
    "Sec-Fetch-Site: cross-site", "Origin: null", "X-Finetune-Local-Key: \xe9", "Accept-Encoding: gzip, br", "Session_hash: x",
    "Authorization: Basic x", "Host: name.example", "X: " + "a" * 20_000,
)  # fmt: skip


class Prepared:
    """The server that is tried, and what it needs to be asked."""

    def __init__(self, folder: Path) -> None:
        from finetune_local.gui.http import server as serving
        from finetune_local.gui.shell.context import Context
        from finetune_local.system.paths import CONFIG_VARIABLE, Home

        self.blocks: list[Any] = []
        shape_of = serving.shape_of
        serving.shape_of = lambda blocks: (self.blocks.append(blocks), shape_of(blocks))[1]
        _start_nothing()
        os.environ[CONFIG_VARIABLE] = str(folder / "config")
        self.written = sys.stderr = _Written()  # uvicorn's log goes there too
        home = Home(folder / "home")
        context = Context(home)
        context.machine.refresh = lambda: None  # type: ignore[method-assign]
        self.server = serving.Server(home, context)
        context.quit = lambda: None
        threading.Thread(target=self.server.run, daemon=True).start()
        access = self.server.access
        self.base = access.path
        self.cookie = access.set_cookie().partition(b";")[0].decode()
        until = time.monotonic() + 60
        while b'"ready": true' not in (said := _ask(self.server.port, _request(self, "GET", "/ftl/alive", []))):
            if time.monotonic() > until or self.server.front.problem:
                raise RuntimeError(f"the page is not made: {said!r}, {self.server.front.problem}")
            time.sleep(0.05)
        self.shape = self.server.front.shape


def _start_nothing() -> None:
    """An event may ask for any work of the app; it is not done here. The server's own part of it is what is tried."""
    from finetune_local.runtime import rpc, start
    from finetune_local.system.errors import RunError

    def refuse(*_given: object, **_named: object) -> NoReturn:
        raise RunError("nothing is started in this trial. Try it in the app.")

    rpc.RpcClient.stream = refuse  # type: ignore[method-assign]
    start.start = refuse
    socket.getaddrinfo = _no_name


def _no_name(host: object, *_given: object, **_named: object) -> NoReturn:
    """The search for models asks the hub; nothing asks for the name that stands in the requests."""
    assert "name.example" not in str(host), f"{host} was looked up"
    raise socket.gaierror(-3, "Temporary failure in name resolution")


class _Written:
    """In place of stderr."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text = (self.text + text)[-20_000:]
        return len(text)

    def flush(self) -> None:
        """Nothing waits."""

    def isatty(self) -> bool:
        return False


def prepare(folder: Path) -> Prepared:
    """Start the server and wait for its page."""
    return Prepared(folder)


def attempt(prepared: Prepared, draw: random.Random, folder: Path) -> None:
    """One request. Events go to the end: their answers are waited for."""
    prepared.written.text = ""
    if draw.random() < 0.45:
        request = _event(prepared, draw)
    elif draw.random() < 0.25:
        request = _upload(prepared, draw)
    else:
        request = _any(prepared, draw)
    answer = _ask(prepared.server.port, request)
    status = answer.split(b" ", 2)[1:2]
    assert not status or not status[0].startswith(b"5") or b"not ready" in answer, (request[:600], answer[:300])
    if answer.startswith(b"HTTP/1.1 200") and b"event_id" in answer:
        _wait_for_events(prepared)
    assert "Traceback" not in prepared.written.text, (request[:1000], prepared.written.text[-3000:])
    alive = _ask(prepared.server.port, _request(prepared, "GET", "/ftl/alive", []))
    assert b'"ready": true' in alive, (request[:600], alive[:300])


def _event(prepared: Prepared, draw: random.Random) -> bytes:
    number = draw.choice(list(prepared.shape.events))
    known: dict[str, Any] = {
        "session_hash": f"fuzz{draw.randrange(3)}",
        "fn_index": number,
        "trigger_id": draw.choice(list(prepared.shape.components)),
        "data": [_content(kind, draw) for kind in prepared.shape.events[number]],
        "event_data": draw.choice(
            (None, {"do": draw.choice(("remove", "show", "go", "")), "value": draw.choice(("x", "../..", ""))})
        ),
    }
    body = json.dumps(known).encode()
    if draw.random() < 0.5:
        body = mutate_json_text(body, draw)
    path = draw.choice(("queue/join",) * 8 + ("cancel", "reset"))
    return _request(prepared, "POST", f"/gradio_api/{path}", ["Content-Type: application/json"], body)


def _content(kind: str, draw: random.Random) -> Any:
    """What a field of the kind may send: any text in its place."""
    if draw.random() < 0.1:
        return draw.choice(AWKWARD)
    if kind == "Checkbox":
        return draw.random() < 0.5
    if kind == "UploadButton":
        return draw.choice(
            (
                None,
                [],
                [{"path": "/etc/passwd"}],
                [{"path": "http://name.example/x", "meta": {"_type": "gradio.FileData"}}],
            )
        )
    texts = [value for value in AWKWARD if isinstance(value, str) and len(value) < 1000]
    return draw.choice((None, "1", "auto", "home 1.0", "q_proj", "0.5", "/tmp", "~", "a\nb", *texts))


def _upload(prepared: Prepared, draw: random.Random) -> bytes:
    name = draw.choice(("x.jsonl", "../../x", "", "\x00", "a" * 300, "x\r\ny", ".", "con", "\u202egpj.exe"))
    field = draw.choice(('; filename="{}"', '; filename="{}"', "")).format(name)
    part = f'--B\r\nContent-Disposition: form-data; name="files"{field}\r\n\r\nhello\r\n--B--\r\n'.encode()
    body = mutate_bytes(part, draw) if draw.random() < 0.6 else part
    kind = draw.choice(("multipart/form-data; boundary=B",) * 4 + ("multipart/form-data; boundary=", "text/plain", "multipart/form-data; boundary=B; charset=\x01"))  # fmt: skip
    query = draw.choice(("", "", "?upload_id=abc", "?upload_id=%00"))
    return _request(prepared, "POST", f"/gradio_api/upload{query}", [f"Content-Type: {kind}"], body)


def _any(prepared: Prepared, draw: random.Random) -> bytes:
    path = draw.choice(_PATHS)
    for _ in range(draw.choice((0, 0, 1, 1, 2))):
        at = draw.randrange(len(path) + 1)
        path = path[:at] + draw.choice(_PIECES) + path[at:]
    if draw.random() < 0.3:
        path += "?" + draw.choice(
            ("session_hash=a", "session_hash=%00", "t=%e9%ff", "t=\xe9", "do=show", "upload_id=zz", "&" * 2000, "v=1")
        )
    headers = draw.sample(_HEADERS, draw.choice((0, 0, 1, 1, 2, 3)))
    body = draw.choice((b"", b"", b"{}", b"[]", b"\xff\xfe", b"[" * 50_000, b"x" * 2000))
    method = draw.choice(_METHODS)
    if (method == "GET" and "queue/data" in path) or "heartbeat" in path:
        method = "HEAD"  # an answer that does not end is no fault
    request = _request(prepared, method, path, headers, body, known=draw.random() < 0.8)
    return mutate_bytes(request, draw) if draw.random() < 0.2 else request


def _request(
    prepared: Prepared, method: str, path: str, headers: list[str], body: bytes = b"", *, known: bool = True
) -> bytes:
    below = prepared.base if known else ""
    lines = [
        f"{method} {below}{path} HTTP/1.1",
        f"Host: 127.0.0.1:{prepared.server.port}",
        "Connection: close",
        *headers,
    ]
    lines += [f"Cookie: {prepared.cookie}"] if known else []
    if body and not any(line.startswith(("Content-Length", "Transfer")) for line in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin1", "replace") + b"\r\n\r\n" + body


def _ask(port: int, request: bytes) -> bytes:
    """What is answered; empty where the connection is ended without a word, or waits for the rest of the request."""
    answer = b""
    with socket.socket() as client:
        client.settimeout(_SECONDS)
        client.connect(("127.0.0.1", port))  # create_connection would look the name up
        try:
            client.sendall(request)
            client.shutdown(socket.SHUT_WR)
            while part := client.recv(65_536):
                answer += part
                if b"text/event-stream" in answer[:1000]:
                    break
        except (ConnectionError, BrokenPipeError):
            pass
    return answer


def _wait_for_events(prepared: Prepared) -> None:
    """Until Gradio's queue has nothing under way."""
    queue = prepared.blocks[-1]._queue
    until = time.monotonic() + _SECONDS
    still = 0
    while still < 5:  # it takes them up some time after they came
        still = 0 if queue.event_ids_to_events or any(queue.active_jobs) else still + 1
        if time.monotonic() > until:
            raise TimeoutError("an event does not end")
        time.sleep(0.005)
