"""What the page asks is checked before Gradio sees it; nothing that anybody sends makes the server look up a name."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from finetune_local.gui.http import requests
from finetune_local.gui.http.gradio_patches import restrain
from finetune_local.gui.http.requests import Requests, Shape

JOIN, DATA, FILE = "/gradio_api/queue/join", "/gradio_api/queue/data", "/gradio_api/file="
SHAPE = Shape({0: ("Textbox", "Dropdown", "Checkbox"), 1: ("UploadButton",), 2: ()}, frozenset({7, 9}))
GOOD = {"session_hash": "abc", "fn_index": 0, "trigger_id": 7, "data": ["a", "b", True], "event_data": {"do": "x"}}


class Asked:
    """An answer, and what came through to Gradio."""

    def __init__(self, folder: Path, path: str, body: bytes = b"", method: str = "POST", query: bytes = b"") -> None:
        self.passed: list[tuple[Any, bytes]] = []
        messages: list[Any] = []

        async def gradio(scope: Any, receive: Any, send: Any) -> None:
            self.passed.append((scope, (await receive())["body"]))
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"{}"})

        async def send(message: Any) -> None:
            messages.append(message)

        parts = [body[at : at + 1000] for at in range(0, len(body), 1000)] or [b""]

        async def receive() -> Any:
            return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

        scope = {"type": "http", "path": path, "method": method, "query_string": query,
                 "headers": [(b"Content-Length", b"99999"), (b"content-type", b"text/plain"), (b"host", b"x")]}  # fmt: skip
        asyncio.run(Requests(gradio, lambda: SHAPE, folder)(scope, receive, send))
        self.status = messages[0]["status"]
        self.text = messages[1]["body"].decode()


def join(folder: Path, **changed: Any) -> Asked:
    return Asked(folder, JOIN, json.dumps({**GOOD, **changed}).encode())


def test_an_event_of_the_page_goes_through_written_anew(tmp_path: Path) -> None:
    asked = join(tmp_path, batched=True, oauth_token="x", simple_format=True)
    scope, body = asked.passed[0]
    assert json.loads(body) == GOOD  # and nothing else
    assert dict(scope["headers"]) == {
        b"host": b"x",
        b"content-type": b"application/json",
        b"content-length": str(len(body)).encode(),
    }


@pytest.mark.parametrize(
    "changed",
    [
        {"fn_index": -1},
        {"fn_index": 10**9},
        {"fn_index": 3},
        {"fn_index": "0"},
        {"fn_index": 0.0},
        {"fn_index": None},
        {"fn_index": True},
        {"session_hash": None},
        {"session_hash": "../x"},
        {"session_hash": ""},
        {"session_hash": "a" * 65},
        {"trigger_id": 8},
        {"trigger_id": "7"},
        {"data": {}},
        {"data": ["a", "b"]},
        {"data": ["a", "b", True, 1]},
        {"data": [1, "b", True]},
        {"data": ["a", {"path": "/etc/passwd"}, True]},
        {"data": ["a", ["b", []], True]},
        {"data": ["a", "b", "yes"]},
        {"data": ["a", 2**63, True]},
        {"data": ["a", 10**400, True]},
        {"data": ["a", float("nan"), True]},
        {"event_data": {"path": "http://name.example/"}},
        {"event_data": [{"x": {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}}]},
    ],
)
def test_what_the_page_does_not_ask_is_refused_in_a_sentence(tmp_path: Path, changed: dict[str, Any]) -> None:
    asked = join(tmp_path, **changed)
    assert asked.status == 400 and asked.passed == []
    assert asked.text.startswith("This is no request of the page: ") and asked.text.endswith(".")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 50_000,
        b'{"data":' + b"9" * 5000 + b"}",
        b'{"data":' * 500,
        b"x" * 100,
    ],
)
@pytest.mark.parametrize("path", [JOIN, "/gradio_api/cancel", "/gradio_api/reset"])
def test_bodies_that_are_no_event(tmp_path: Path, path: str, body: bytes) -> None:
    asked = Asked(tmp_path, path, body)
    assert asked.status == 400 and asked.passed == []


def test_a_body_has_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "MOST_BYTES", 3 << 20)
    asked = Asked(tmp_path, JOIN, b"x" * (3 << 20) + b"y" * 5000)
    assert asked.status == 400 and "larger than 3 MB" in asked.text


def test_an_empty_field_is_an_empty_text(tmp_path: Path) -> None:
    assert json.loads(join(tmp_path, data=[None, None, None]).passed[0][1])["data"] == ["", None, None]


def test_half_letters_become_whole_ones(tmp_path: Path) -> None:
    asked = Asked(tmp_path, JOIN, json.dumps({**GOOD, "data": ["\ud800x", "b", None]}).encode())
    assert json.loads(asked.passed[0][1])["data"] == ["?x", "b", None]


def test_only_a_dropped_file_is_a_file(tmp_path: Path) -> None:
    folder, outside = tmp_path / "uploads", tmp_path / "secret"
    (folder / "a").mkdir(parents=True)
    dropped = folder / "a" / "x.jsonl"
    dropped.write_text("{}", "utf-8")
    outside.write_text("{}", "utf-8")
    (folder / "link").symlink_to(outside)

    def drop(*files: Any) -> Asked:
        return join(folder, fn_index=1, trigger_id=9, event_data=None, data=[list(files)])

    given = {"path": str(dropped), "url": "http://name.example/", "orig_name": "ü.jsonl", "is_stream": True, "size": 2}
    passed = json.loads(drop(given).passed[0][1])["data"][0]
    assert passed == [{"path": str(dropped), "orig_name": "ü.jsonl", "meta": {"_type": "gradio.FileData"}}]
    alone = join(folder, fn_index=1, trigger_id=9, event_data=None, data=[given])  # a place for one file
    assert json.loads(alone.passed[0][1])["data"] == passed
    names = ("http://name.example/x", "https://name.example/", "HTTP://name.example", "//name.example/x", "file:///etc/passwd",
             "/etc/passwd", str(outside), str(folder / "link"), str(folder), f"{folder}/a/../../secret", "x.jsonl", "", "\0",
             "a" * 5000, "/dev/zero", "\ud800")  # fmt: skip
    for name in names:
        assert drop({**given, "path": name}).status == 400, name
        if name.isprintable() and len(name) < 1000:
            assert Asked(folder, FILE + name, method="GET").status == 403, name
    for other in ("x", 1, None, [], {"path": 1}, {"url": str(dropped)}):
        assert drop(other).status == 400, other
    assert Asked(folder, FILE + str(dropped), method="GET").status == 200


@pytest.mark.parametrize(
    ("path", "query"),
    [
        (DATA, b""),
        (DATA, b"session_hash="),
        (DATA, b"session_hash=a&session_hash=b"),
        (DATA, b"session_hash=%00"),
        ("/gradio_api/upload_progress", b""),
        ("/gradio_api/heartbeat/", b""),
        ("/gradio_api/heartbeat/a/b", b""),
        ("/assets/\0", b""),
        ("/assets/" + "a" * 300, b""),
        ("/assets/" + "a/" * 600, b""),
        (JOIN, b""),
    ],
)
def test_odd_addresses_are_refused(tmp_path: Path, path: str, query: bytes) -> None:
    asked = Asked(tmp_path, path, method="GET", query=query)
    assert asked.status == 400 and asked.passed == []


def test_gradio_itself_fetches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a request came past all of this: every way that Gradio has to an address is closed."""
    pytest.importorskip("gradio")
    from gradio import processing_utils, route_utils

    def no_name(*_: object, **__: object) -> None:
        pytest.fail("a name was looked up")

    monkeypatch.setattr(socket, "getaddrinfo", no_name)
    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", no_name)
    restrain()
    restrain()
    request: Any = type("Request", (), {"headers": {}, "method": "GET"})()
    for attempt in (
        lambda: processing_utils.async_ssrf_protected_download("http://name.example/x", "/nonexistent"),
        lambda: processing_utils.async_ssrf_protected_get("http://name.example/x"),
        lambda: route_utils.secure_url_stream_response("http://name.example/x", request),
    ):
        with pytest.raises(Exception, match=r"nothing is fetched|not allowed|403"):
            asyncio.run(attempt())
