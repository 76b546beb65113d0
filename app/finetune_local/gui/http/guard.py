"""Access control of the window's server. It admits one browser, run by the app's user and showing the app's page, and refuses every
other request before it reaches Gradio.

By itself, Gradio answers any Host (DNS rebinding), accepts JSON posts and uploads from other sites, and requires no token. Here a
connection must come from a program of the app's user (peer.py), and a request must name this address, originate from a page of it, lie
below a secret path, and carry the cookie that a launch link was exchanged for. Of Gradio's routes, only those that the page uses are
open. Those for developers, the description of the API and its monitoring are closed.

The path is secret because browsers send a cookie to every port of a host, so that a page on another port of 127.0.0.1 would receive
the window's. A cookie is only sent below its Path, and this Path changes at each start. So no browser sends the cookie to another port,
and a program that obtained it in another way would still lack the path.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

from finetune_local.gui.http import policy
from finetune_local.gui.http.peer import Connection, Peer, owner_of

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = "/open"
"""The path of a launch link, below the secret one: /PATH/open?t=TOKEN."""

CONTROL = "/control"
"""The path at which a second start of the app sends requests to the first: POST /control?do=show. The key of the instance file is in a
header that no page can send."""

CONTROL_HEADER = "x-finetune-local-key"

OWN = "/ftl/"
"""Paths that the server answers without Gradio: style sheets, scripts, images, and its status."""

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

METHODS = ("GET", "HEAD", "POST")

_SINGLE = ("host", "origin", "sec-fetch-site", CONTROL_HEADER, "content-length", "content-type")
"""Headers that may occur only once. If there were two, another layer might read the other one."""

_FOR_GRADIO = (
    b"host", b"accept", b"accept-encoding", b"accept-language", b"user-agent", b"content-type", b"content-length",
    b"transfer-encoding", b"if-none-match", b"if-modified-since",
)  # fmt: skip
"""Request headers that are passed on to Gradio. Dropped are, among others, those of proxies and requests for ranges of files."""

_SPENT = "This link was used already. Open the app again to get another."
_STRANGER = "Open Finetune Local from its window, or by the link that it printed."
_PEERS = {
    Peer.ANOTHER: "This window is for another user of this machine.",
    Peer.UNKNOWN: (
        "It could not be found out whose program this is, so it gets no answer. If you are the only user of this machine, start "
        "Finetune Local with the environment variable FINETUNE_LOCAL_TRUST_THIS_MACHINE=1."
    ),
}


class Access:
    """The secrets of one launch: single-use links, and the path and cookie that a link gives access with."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.cookie_name = f"finetune-local-{port}"
        self.path = "/" + secrets.token_urlsafe(24)
        self._cookie = secrets.token_urlsafe(32)
        self._links: set[str] = set()
        self.opened = False
        """Whether a link has been used, so that a browser has the page."""
        self.control_key = secrets.token_urlsafe(32)
        self.on_control: Callable[[str], str] = lambda _do: ""
        self.hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        self.origins = {f"http://{host}" for host in self.hosts}

    @property
    def page(self) -> str:
        """The page's address, for a browser that has the cookie."""
        return f"http://127.0.0.1:{self.port}{self.path}/"

    def link(self) -> str:
        """A new link, which opens the window once."""
        token = secrets.token_urlsafe(32)
        self._links.add(token)
        return f"http://127.0.0.1:{self.port}{self.path}{OPEN}?t={token}"

    def redeem(self, token: str) -> bool:
        """Use a link. Returns False if it is invalid or was used before."""
        found = next((known for known in self._links if same(known, token)), None)
        if found is None:
            return False
        self._links.discard(found)
        self.opened = True
        return True

    def set_cookie(self) -> bytes:
        """The value of the Set-Cookie header."""
        return f"{self.cookie_name}={self._cookie}; HttpOnly; SameSite=Strict; Path={self.path}/".encode()

    def admits(self, cookie_header: str) -> bool:
        """Whether a Cookie header contains the launch's cookie. Another port may have set a second one of the same name."""
        cookies = (part.strip().partition("=") for part in cookie_header.split(";"))
        return any(name == self.cookie_name and same(value.strip('"'), self._cookie) for name, _, value in cookies)

    def inner(self, path: str) -> str | None:
        """The part of a request's path below the secret path; None if it is not below it."""
        first, _, rest = path.removeprefix("/").partition("/")
        return f"/{rest}" if same(f"/{first}", self.path) and path.startswith(f"/{first}/") else None


class Guard:
    """ASGI middleware around the whole server."""

    def __init__(self, app: App, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on an admitted request; answer others with the reason why they are refused."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # the page uses none
            return
        if scope["type"] != "http":
            return
        connection: Connection = scope.get("state", {}).get("connection") or Connection()
        if connection.peer is None:
            connection.peer = owner_of(scope.get("client"), scope.get("server"))
        if (text := _PEERS.get(connection.peer)) is not None:
            await answer(send, 403, text)
            return
        headers = [(name.decode("latin1").lower(), value.decode("latin1")) for name, value in scope["headers"]]
        if (refusal := self._refusal(scope, headers)) is not None:
            await answer(send, *refusal)
            return
        if scope["path"] == CONTROL:
            await self._control(scope, headers, send)
            return
        path = self.access.inner(scope["path"])
        admitted = self.access.admits("; ".join(value for name, value in headers if name == "cookie"))
        if path == OPEN:
            await self._open(scope, headers, send, admitted)
        elif path is None or not admitted:
            await answer(send, 401, _STRANGER)
        elif _of(headers, "sec-fetch-site") == "cross-site":
            await answer(send, 403, "Requests from other pages are refused.")
        elif not _is_open(path):
            await answer(send, 404, "There is nothing here.")
        else:
            connection.admitted = True
            passed = [(name, value) for name, value in scope["headers"] if name.lower() in _FOR_GRADIO]
            nonce = policy.new_nonce() if path == "/" else None
            known = {"path": path, "raw_path": path.encode("utf-8"), "root_path": self.access.path, policy.NONCE: nonce}
            await self.app({**scope, **known, "headers": passed}, receive, _with_headers(send, nonce))

    async def _control(self, scope: Scope, headers: list[tuple[str, str]], send: Send) -> None:
        if scope["method"] == "POST" and same(_of(headers, CONTROL_HEADER), self.access.control_key):
            await answer(send, 200, self.access.on_control(_query(scope, "do")))
        else:
            await answer(send, 401, "This is not for you.")

    async def _open(self, scope: Scope, headers: list[tuple[str, str]], send: Send, admitted: bool) -> None:
        """Exchange a launch link for the cookie. A browser that comes from a page on disk stores the cookie but does not send it along a
        redirect, so it receives a page that leads on instead."""
        new = scope["method"] == "GET" and self.access.redeem(_query(scope, "t"))
        if not new and not admitted:
            await answer(send, 401, _SPENT)
            return
        more = [(b"cache-control", b"no-store"), *([(b"set-cookie", self.access.set_cookie())] if new else [])]
        place = f"{self.access.path}/"
        if _of(headers, "sec-fetch-site") == "cross-site":
            page = f'<!doctype html><meta http-equiv="refresh" content="0;url={place}"><title>Finetune Local</title>'
            await answer(send, 200, page, more, b"text/html; charset=utf-8")
        else:
            await answer(send, 303, "", [(b"location", place.encode()), *more])

    def _refusal(self, scope: Scope, headers: list[tuple[str, str]]) -> tuple[int, str] | None:
        names = [name for name, _ in headers]
        if any(names.count(name) > 1 for name in _SINGLE) or not scope["query_string"].isascii():
            return 400, "This request is not written as a browser writes it."
        if scope["method"] not in METHODS:
            return 405, "Only GET, HEAD and POST are answered."
        if _of(headers, "host") not in self.access.hosts:
            return 421, "This address is not the app's."
        if "origin" in names and _of(headers, "origin") not in self.access.origins:
            return 403, "Requests from other pages are refused."
        site = _of(headers, "sec-fetch-site") if "sec-fetch-site" in names else None
        from_disk = site == "cross-site" and _of(headers, "sec-fetch-mode") == "navigate" and scope["method"] == "GET"
        if site not in (None, "same-origin", "none") and not from_disk:
            return 403, "Requests from other pages are refused."
        if scope["method"] == "POST" and site == "none":
            return 403, "Requests from outside the page are refused."
        return None


def same(one: str, other: str) -> bool:
    """Whether two secrets are equal, compared in constant time. Any text is accepted."""
    return hmac.compare_digest(one.encode("utf-8", "surrogatepass"), other.encode("utf-8", "surrogatepass"))


def _of(headers: list[tuple[str, str]], name: str) -> str:
    return next((value for known, value in headers if known == name), "")


def _query(scope: Scope, name: str) -> str:
    query: bytes = scope.get("query_string", b"")
    return parse_qs(query.decode("latin1")).get(name, [""])[0]


def _is_open(path: str) -> bool:
    if ".." in path.split("/"):
        return False
    return any(path.startswith(known[:-1]) if known.endswith("*") else path == known for known in ALLOWED)


def _with_headers(send: Send, nonce: str | None) -> Send:
    own = policy.headers(nonce)

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            others = [(name, value) for name, value in message.get("headers", ()) if name.lower() not in policy.NAMES]
            message = {**message, "headers": [*others, *own]}
        await send(message)

    return sending


async def answer(
    send: Send,
    status: int,
    text: str,
    more: list[tuple[bytes, bytes]] | None = None,
    kind: bytes = b"text/plain; charset=utf-8",
) -> None:
    """Send a response without calling the app. A status of 400 or above closes the connection."""
    end = [(b"connection", b"close")] if status >= 400 else []
    headers = [
        (b"content-type", kind),
        *policy.headers(policy.new_nonce() if kind.startswith(b"text/html") else None),
        *end,
        *(more or []),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
