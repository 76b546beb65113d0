from __future__ import annotations

import asyncio
from typing import Any

from finetune_local.gui.http.server import with_head

PAGE = "<!doctype html><html><head><title>题</title></head><body><head></body></html>"


async def page(scope: Any, _receive: Any, send: Any) -> None:
    asked = dict(scope["headers"])
    assert scope["path"] != "/" or scope["method"] != "GET" or b"accept-encoding" not in asked
    body = PAGE.encode()
    headers = [(b"Content-Length", str(len(body)).encode()), (b"x-kept", b"1")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body[:20], "more_body": True})
    await send({"type": "http.response.body", "body": body[20:]})


def answer(path: str, method: str = "GET") -> tuple[dict[bytes, bytes], str]:
    told: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        told.append(message)

    scope = {"type": "http", "path": path, "method": method, "headers": [(b"Accept-Encoding", b"br")]}
    asyncio.run(with_head(page, "<script>1 // 一</script>")(scope, send, send))
    return dict(told[0]["headers"]), b"".join(message["body"] for message in told[1:]).decode()


def test_the_page_begins_with_our_lines_once() -> None:
    headers, text = answer("/")
    assert text == PAGE.replace("<head>", '<head><script nonce="">1 // 一</script>', 1)
    assert headers == {b"x-kept": b"1", b"content-length": str(len(text.encode())).encode()}


def test_all_else_is_as_it_was() -> None:
    assert answer("/config")[1] == PAGE == answer("/", "HEAD")[1]
