"""Our own lines at the beginning of Gradio's page. What Gradio is given as `head` it adds when its scripts run, long after the page has
come into view: too late for the theme, for the cover over its own loading screen, and for a window that looks for our script.
"""

from __future__ import annotations

from typing import Any

from finetune_local.gui.http.guard import App, Message, Receive, Scope, Send
from finetune_local.gui.http.policy import with_nonce

_HEAD = b"<head>"


def with_head(app: App, lines: str) -> App:
    """ASGI: the app, whose page at / has these lines first in its head."""
    added = lines.encode("utf-8")

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/" or scope["method"] != "GET":
            await app(scope, receive, send)
            return
        start: dict[str, Any] = {}
        body = bytearray()

        async def take(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            elif message["type"] == "http.response.body":
                body.extend(message.get("body", b""))

        uncompressed = [(name, value) for name, value in scope["headers"] if name.lower() != b"accept-encoding"]
        await app({**scope, "headers": uncompressed}, receive, take)
        whole = with_nonce(bytes(body).replace(_HEAD, _HEAD + added, 1), scope)
        kept = [(name, value) for name, value in start.get("headers", ()) if name.lower() != b"content-length"]
        length = (b"content-length", str(len(whole)).encode("ascii"))
        await send({**start, "headers": [*kept, length]})
        await send({"type": "http.response.body", "body": whole})

    return answer
