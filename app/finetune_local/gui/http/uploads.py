"""Uploads: a file that does not fit on the disk is refused before it is written, and running out of room is reported as such.

Gradio writes dropped files into a folder of the cache, and a page moves them from there. By itself, it answers a full disk with
"Internal Server Error" and leaves the partial file.
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
"""Bytes that an upload must leave free for the app itself."""

_UNFINISHED = "tmp*"


class Uploads:
    """ASGI middleware. `folder` is where Gradio writes; `largest` is the maximum number of bytes of a request."""

    def __init__(self, app: App, context: Context, folder: Path, largest: int) -> None:
        self._app, self._context, self._folder, self._largest = app, context, folder, largest
        self._in_progress = 0
        self._sweep()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check uploads for room on the disk; pass on all other requests."""
        if scope["type"] != "http" or scope["path"] != PATH:
            await self._app(scope, receive, send)
            return
        size = _length(scope)
        if size is None or not _multipart(scope):
            await answer(send, 400, "This is no request of the page: files are sent as a form, with their size.")
            return
        if size > self._largest or size + SPARE > free_bytes(self._folder):
            while (await receive()).get("more_body"):
                pass  # a browser reads the response only after it has sent everything
            await self._refuse(send, too_large=size > self._largest)
            return
        failure: list[Message] = []
        full = unreadable = False

        async def sending(message: Message) -> None:
            if failure or message.get("status", 0) >= 500:
                failure.append(message)
            else:
                await send(message)

        self._in_progress += 1
        try:
            await self._app(scope, receive, sending)
        except OSError as error:
            if not is_no_space(error):
                raise
            full = True
            failure.clear()
        except Exception as error:  # noqa: BLE001 - Gradio's form reader raises errors of many types
            logger.warning("A form could not be read: %s: %.200s", type(error).__name__, error)
            failure.clear()
            unreadable = True
        finally:
            self._in_progress -= 1
            for message in failure:
                await send(message)
        if full:
            self._sweep()
            await self._refuse(send)
        elif unreadable:
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
        """Remove partial files of failed uploads. Complete files are in folders, which stay."""
        for file in self._folder.glob(_UNFINISHED) if not self._in_progress else ():
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
