"""Who may talk to the window's server: one browser, from its own page. Everything else is refused before Gradio sees it.

Gradio by itself answers any Host (DNS rebinding), runs JSON posts and takes uploads from foreign pages, and asks for no token.
Here a request must come to this very address, from a page of it, with the cookie that a launch link turned into. Of Gradio's
routes those that the page uses are open; those for developers, the API's description and its monitoring are not.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

from finetune_local.ui.peer import is_another_user_s

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = "/open"
"""A launch link's path: /open?t=TOKEN."""

CONTROL = "/control"
"""Where a second start of the app speaks to the first: POST /control?do=show, with the key of its instance file in a header that
no page can send."""

CONTROL_HEADER = "x-finetune-local-key"

OWN = "/ftl/"
"""Paths the server answers itself: style, script, pictures, whether it lives."""

ALLOWED = (
    "/",
    "/config",
    "/theme.css",
    "/favicon.ico",
    "/manifest.json",
    "/assets/*",
    "/static/*",
    "/svelte/*",
    "/gradio_api/startup-events",
    "/gradio_api/queue/join",
    "/gradio_api/queue/data",
    "/gradio_api/cancel",
    "/gradio_api/reset",
    "/gradio_api/heartbeat/*",
    "/gradio_api/upload",
    "/gradio_api/upload_progress",
    "/gradio_api/file=*",
    OWN + "*",
)

# Gradio makes its templates into functions ('unsafe-eval') and styles elements in place; nothing may come from elsewhere.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; media-src 'self' blob:; "
    "object-src 'none'; frame-src 'none'; frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
)
HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-frame-options", b"DENY"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=(), usb=(), payment=()"),
)


class Gate:
    """The secrets of one launch: single-use links, and the cookie a link is turned into."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.cookie_name = f"finetune-local-{port}"
        self._cookie = secrets.token_urlsafe(32)
        self._links: set[str] = set()
        self.opened = False
        """Whether a link was ever used: somebody has the page."""
        self.control_key = secrets.token_urlsafe(32)
        self.on_control: Callable[[str], str] = lambda _do: ""
        self.hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        self.origins = {f"http://{host}" for host in self.hosts}

    def link(self) -> str:
        """A new link that opens the window once."""
        token = secrets.token_urlsafe(32)
        self._links.add(token)
        return f"http://127.0.0.1:{self.port}{OPEN}?t={token}"

    def redeem(self, token: str) -> bool:
        """Use a link up; False where it is none, or was used before."""
        found = next((known for known in self._links if hmac.compare_digest(known, token)), None)
        if found is None:
            return False
        self._links.discard(found)
        self.opened = True
        return True

    def set_cookie(self) -> bytes:
        """The header that hands the cookie over."""
        return f"{self.cookie_name}={self._cookie}; HttpOnly; SameSite=Strict; Path=/".encode()

    def admits(self, cookie_header: str) -> bool:
        """Whether a Cookie header has the launch's own."""
        try:
            found = SimpleCookie(cookie_header).get(self.cookie_name)
        except CookieError:
            return False
        return found is not None and hmac.compare_digest(found.value, self._cookie)


class Guard:
    """ASGI middleware around everything."""

    def __init__(self, app: App, gate: Gate) -> None:
        self.app, self.gate = app, gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it with why not."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # nothing here speaks it
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin1").lower(): value.decode("latin1") for name, value in scope["headers"]}
        if (refusal := self._refusal(scope, headers)) is not None:
            await _answer(send, *refusal)
            return
        path = scope["path"]
        if path == CONTROL:
            if not hmac.compare_digest(headers.get(CONTROL_HEADER, ""), self.gate.control_key):
                await _answer(send, 401, "This is not for you.")
            else:
                await _answer(send, 200, self.gate.on_control(_asked(scope, "do")))
            return
        if path == OPEN:
            token = _asked(scope, "t")
            if (client := scope.get("client")) is not None and is_another_user_s(client[1], self.gate.port):
                await _answer(send, 403, "This link is for another user of this machine.")
            elif self.gate.redeem(token):
                more = [(b"location", b"/"), (b"set-cookie", self.gate.set_cookie()), (b"cache-control", b"no-store")]
                await _answer(send, 303, "", more)
            elif self.gate.admits(headers.get("cookie", "")):  # a reload of the link's page
                await _answer(send, 303, "", [(b"location", b"/")])
            else:
                await _answer(send, 401, "This link was used already. Open the app again to get another.")
            return
        if not self.gate.admits(headers.get("cookie", "")):
            await _answer(send, 401, "Open Finetune Local from its window, or by the link that it printed.")
            return
        if not _is_open(path):
            await _answer(send, 404, "There is nothing here.")
            return
        await self.app(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope, headers: MutableMapping[str, str]) -> tuple[int, str] | None:
        if headers.get("host") not in self.gate.hosts:
            return 421, "This address is not the app's."
        origin = headers.get("origin")
        if origin is not None and origin not in self.gate.origins:
            return 403, "Requests from other pages are refused."
        site = headers.get("sec-fetch-site")
        if site is not None and site not in ("same-origin", "none"):
            return 403, "Requests from other pages are refused."
        if scope["method"] not in ("GET", "HEAD") and site == "none":
            return 403, "Requests from outside the page are refused."
        return None


def _asked(scope: Scope, name: str) -> str:
    query: bytes = scope.get("query_string", b"")
    return parse_qs(query.decode("latin1")).get(name, [""])[0]


def _is_open(path: str) -> bool:
    if ".." in path.split("/"):
        return False
    return any(path.startswith(known[:-1]) if known.endswith("*") else path == known for known in ALLOWED)


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = {name for name, _ in HEADERS}
            kept = [(name, value) for name, value in message.get("headers", ()) if name.lower() not in own]
            message = {**message, "headers": [*kept, *HEADERS]}
        await send(message)

    return sending


async def _answer(send: Send, status: int, text: str, more: list[tuple[bytes, bytes]] | None = None) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *HEADERS, *(more or [])]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
