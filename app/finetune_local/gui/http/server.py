"""The window's server, on 127.0.0.1. It answers at once with a splash, and with Gradio's page as soon as that is built.

Importing Gradio takes seconds, so it happens in a thread while the splash is shown. Frameworks are never imported in this process:
training, jobs, chat and previews have their own. A change of language rebuilds the page.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import threading
import traceback
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_local.gui.http.gradio_patches import skip_stubs
from finetune_local.gui.http.guard import OWN, Access, App, Guard, Message, Receive, Scope, Send
from finetune_local.gui.http.policy import with_nonce
from finetune_local.gui.http.requests import NOTHING, Requests, Shape, shape_of
from finetune_local.gui.http.uploads import Uploads
from finetune_local.system import paths
from finetune_local.system.paths import Home
from finetune_local.system.private import write_privately

if TYPE_CHECKING:
    from finetune_local.gui.shell.context import Context

QUEUE_SECONDS = 0.02
LARGEST_UPLOAD = 8 << 30
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}


def quiet_libraries(home: Home) -> None:
    """Set up the environment before Gradio is imported: no telemetry, no requests to servers, uploads in the app's cache."""
    uploads = home.cache / "uploads"
    os.environ.update(
        {
            "GRADIO_ANALYTICS_ENABLED": "False",
            "GRADIO_TEMP_DIR": str(uploads),
            "GRADIO_DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "DO_NOT_TRACK": "1",
            "MPLCONFIGDIR": str(home.cache),
        }
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    skip_stubs()


class Server:
    """The server of one home, bound to its port from the start."""

    def __init__(self, home: Home, context: Context, port: int = 0) -> None:
        self.home, self.context = home, context
        self.socket = socket.socket()
        # On Windows SO_REUSEADDR would let any other program listen at the same port.
        alone = getattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_REUSEADDR)
        self.socket.setsockopt(socket.SOL_SOCKET, alone, 1)
        try:
            self.socket.bind(("127.0.0.1", port))
            self.socket.listen(128)  # a request before the first answer waits instead of being refused
        except OSError:
            self.socket.close()
            raise
        self.port: int = self.socket.getsockname()[1]
        self.access = Access(self.port)
        self.front = Front(context)
        self._uvicorn: Any = None
        self._stopped = False
        self._ready = threading.Event()

    def run(self) -> None:
        """Serve until stop() or Ctrl-C. Must be called in the main thread."""
        import uvicorn

        from finetune_local.gui.http.connections import BACKLOG, Limits, limit_logs, most_connections

        write_privately()
        front = self.front

        class Ending(uvicorn.Server):
            async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
                await super().shutdown(sockets)
                await front.close()

        quiet_libraries(self.home)
        limit_logs()
        uploads = self.home.cache / "uploads"
        uploading = Uploads(self.front, self.context, uploads, LARGEST_UPLOAD)
        config = uvicorn.Config(
            Guard(Requests(uploading, lambda: self.front.shape, uploads), self.access),
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=1,
            http=Limits(most_connections()).protocol(),
            ws="none",
            loop="asyncio",
            backlog=BACKLOG,
            proxy_headers=False,  # they could fake the client's address
            server_header=False,
            date_header=False,
        )
        self._uvicorn = Ending(config)
        self._uvicorn.should_exit = self._stopped
        threading.Thread(target=self._build, name="build", daemon=True).start()
        try:
            self._uvicorn.run(sockets=[self.socket])
        finally:
            self.context.close()

    def stop(self) -> None:
        """Make run() return, even if it has not been called yet."""
        self._stopped = True
        if self._uvicorn is not None:
            self._uvicorn.should_exit = True

    def wait_until_ready(self, seconds: float) -> bool:
        """Wait for Gradio's page. Returns False if it is not ready in time or cannot be built."""
        return self._ready.wait(seconds) and self.front.problem is None

    def _build(self) -> None:
        try:
            build = self.context.rebuild = lambda: self.front.install(*self._page())
            build()
            self.context.machine.refresh()
        except BaseException:  # noqa: BLE001 - the splash shows every error
            self.front.problem = traceback.format_exc()
        self._ready.set()

    def _page(self) -> tuple[Any, Shape]:
        import fastapi
        import gradio as gr

        from finetune_local.gui.http.gradio_patches import restrain
        from finetune_local.gui.shell.main import create_app, mount_options

        restrain()
        outer = fastapi.FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
        blocks = create_app(self.context)
        # By default Gradio polls for events a thousand times per second, which takes 6 % of a processor while idle.
        blocks._queue.sleep_when_free = blocks._queue.progress_update_sleep_when_free = QUEUE_SECONDS
        shape = shape_of(blocks)
        page = gr.mount_gradio_app(
            outer,
            blocks,
            path="/",
            server_name="127.0.0.1",
            server_port=self.port,
            max_file_size=LARGEST_UPLOAD,
            **mount_options(),
        )
        return page, shape


class Front:
    """The ASGI application: the app's own files and status, and for all other paths the page, or the splash until it is built."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.problem: str | None = None
        self.built = 0
        self.shape = NOTHING
        self._page: App | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lifespans = AsyncExitStack()
        self._first = asyncio.Event()

    def install(self, page: Any, shape: Shape) -> None:
        """Replace the page. Called from another thread; blocks until the new page is started."""
        from finetune_local.gui.shell.main import first_lines

        async def enter() -> None:
            await self._lifespans.enter_async_context(page.router.lifespan_context(page))
            self._page = with_head(page, first_lines(self.context))
            self.shape = shape
            self.built += 1

        while self._loop is None:
            threading.Event().wait(0.01)
        asyncio.run_coroutine_threadsafe(enter(), self._loop).result()

    async def close(self) -> None:
        """Shut down every page that was installed."""
        await self._lifespans.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        self._loop = asyncio.get_running_loop()
        path: str = scope["path"]
        if path.startswith(OWN):
            await self._own(path.removeprefix(OWN), send)
        elif self._page is not None:
            await self._page(scope, receive, send)
        elif path == "/":
            await _send(send, 200, "text/html; charset=utf-8", with_nonce(self._splash().encode(), scope))
        else:
            await _send(send, 503, "text/plain; charset=utf-8", b"not ready yet")

    async def _own(self, name: str, send: Send) -> None:
        if name == "alive":
            facts = {"ready": self._page is not None, "built": self.built, "problem": self.problem}
            await _send(send, 200, "application/json", json.dumps(facts).encode())
            return
        file = shipped(name)
        if file is None:
            await _send(send, 404, "text/plain; charset=utf-8", b"There is nothing here.")
        else:
            await _send(send, 200, _TYPES[file.suffix], file.read_bytes())

    def _splash(self) -> str:
        words = self.context.t
        text = (paths.assets() / "ui" / "splash.html").read_text("utf-8")
        filled = {"lang": words.language, "title": words("common.app"), "text": words("common.splash"),
                  "failed": words("common.splash_failed"), "theme": self.context.preferences.theme}  # fmt: skip
        for key, value in filled.items():
            text = text.replace("%" + key + "%", value)
        return text


def shipped(name: str) -> Path | None:
    """A file of assets/ui by its name below /ftl/; None if there is no such file, or its type is not served."""
    folder = (paths.assets() / "ui").resolve()
    file = (folder / name).resolve()
    return file if file.is_file() and file.is_relative_to(folder) and file.suffix in _TYPES else None


async def _send(send: Send, status: int, kind: str, body: bytes) -> None:
    headers = [(b"content-type", kind.encode()), (b"cache-control", b"no-cache")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


_HEAD = b"<head>"


def with_head(app: App, lines: str) -> App:
    """ASGI middleware: puts lines first in the head of the page at /.

    Gradio adds its own `head` option when its scripts run, long after the page is visible. That is too late for the theme, for the
    cover over its loading screen, and for a window that looks for the app's script.
    """
    added = lines.encode("utf-8")

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/" or scope["method"] != "GET":
            await app(scope, receive, send)
            return
        start: dict[str, Any] = {}
        body = bytearray()

        async def collect(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            elif message["type"] == "http.response.body":
                body.extend(message.get("body", b""))

        uncompressed = [(name, value) for name, value in scope["headers"] if name.lower() != b"accept-encoding"]
        await app({**scope, "headers": uncompressed}, receive, collect)
        page = with_nonce(bytes(body).replace(_HEAD, _HEAD + added, 1), scope)
        others = [(name, value) for name, value in start.get("headers", ()) if name.lower() != b"content-length"]
        length = (b"content-length", str(len(page)).encode("ascii"))
        await send({**start, "headers": [*others, length]})
        await send({"type": "http.response.body", "body": page})

    return answer
