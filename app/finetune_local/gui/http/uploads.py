"""Files that are sent to the server: one that has no room is refused before it is written, and one for which room ran out is told as such.

Gradio writes what is dropped into a folder of the cache; a page moves it from there. It answers a full disk with "Internal Server
Error" and leaves what it had written.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_local.gui.http.guard import App, Message, Receive, Scope, Send, answer
from finetune_local.system.files import free_bytes, is_no_space

if TYPE_CHECKING:
    from finetune_local.gui.shell.context import Context

logger = logging.getLogger("uvicorn.error")
PATH = "/gradio_api/upload"
SPARE = 64 << 20
"""Room that is left on the disk beside an upload: the app itself needs some."""

_UNFINISHED = "tmp*"


class Uploads:
    """ASGI middleware. `folder` is where Gradio writes, `largest` the most bytes of a request."""

    def __init__(self, app: App, context: Context, folder: Path, largest: int) -> None:
        self._app, self._context, self._folder, self._largest = app, context, folder, largest
        self._under_way = 0
        self._sweep()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let everything through; of uploads see that there is room."""
        if scope["type"] != "http" or scope["path"] != PATH:
            await self._app(scope, receive, send)
            return
        size = _length(scope)
        if size is None or not _multipart(scope):
            await answer(send, 400, "This is no request of the page: files are sent as a form, with their size.")
            return
        if size > self._largest or size + SPARE > free_bytes(self._folder):
            while (await receive()).get("more_body"):
                pass  # a browser reads an answer only when it has sent everything
            await self._refuse(send, too_large=size > self._largest)
            return
        held: list[Message] = []
        full = unread = False

        async def sending(message: Message) -> None:
            if held or message.get("status", 0) >= 500:
                held.append(message)
            else:
                await send(message)

        self._under_way += 1
        try:
            await self._app(scope, receive, sending)
        except OSError as error:
            if not is_no_space(error):
                raise
            full = True
            held.clear()
        except Exception as error:  # noqa: BLE001 - Gradio's form reader raises whatever it meets in a form that no browser wrote
            logger.warning("A form could not be read: %s: %.200s", type(error).__name__, error)
            held.clear()
            unread = True
        finally:
            self._under_way -= 1
            for message in held:
                await send(message)
        if full:
            self._sweep()
            await self._refuse(send)
        elif unread:
            self._sweep()
            await answer(send, 400, "This is no request of the page: its form cannot be read.")

    async def _refuse(self, send: Send, *, too_large: bool = False) -> None:
        t, f = self._context.t, self._context.f
        text = (
            t("data.upload_large", size=f.size(self._largest))
            if too_large
            else t("data.upload_full", size=f.size(free_bytes(self._folder)))
        )
        headers = [(b"content-type", b"text/plain; charset=utf-8")]
        await send({"type": "http.response.start", "status": 413 if too_large else 507, "headers": headers})
        await send({"type": "http.response.body", "body": text.encode()})

    def _sweep(self) -> None:
        """Remove what broken uploads left; a whole one is in its own folder."""
        for file in self._folder.glob(_UNFINISHED) if not self._under_way else ():
            if file.is_file():
                file.unlink(missing_ok=True)


def _length(scope: Scope) -> int | None:
    found = _header(scope, b"content-length")
    return int(found) if found.isdigit() and len(found) < 19 else None


def _multipart(scope: Scope) -> bool:
    kind = _header(scope, b"content-type")
    return scope["method"] == "POST" and kind.lower().startswith(b"multipart/form-data") and b"boundary=" in kind


def _header(scope: Scope, name: bytes) -> bytes:
    return next((bytes(value) for known, value in scope["headers"] if known.lower() == name), b"")
