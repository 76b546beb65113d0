"""Who may talk to the window's server, asked of the guard itself; a browser asks it again in tests/ui/test_private.py."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from finetune_local.gui.http.guard import CONTROL_HEADER, Access, Guard
from finetune_local.gui.http.peer import Connection, Peer
from finetune_local.gui.http.policy import with_nonce

PORT = 4711
HERE = f"127.0.0.1:{PORT}"


PASSED: list[Any] = []
"""What came through to the page last."""


async def _page(scope: Any, receive: Any, send: Any) -> None:
    PASSED[:] = [scope]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"X-Frame-Options", b"ALLOWALL")]})
    await send({"type": "http.response.body", "body": b"the page"})


class Asked:
    """An answer of the guard."""

    def __init__(self, messages: list[dict[str, Any]]) -> None:
        self.status = messages[0].get("status")
        self.headers = {name.decode().lower(): value.decode() for name, value in messages[0].get("headers", ())}
        self.text = b"".join(m.get("body", b"") for m in messages).decode()
        self.kind = messages[0]["type"]


def ask(
    access: Access,
    path: str,
    method: str = "GET",
    query: str = "",
    kind: str = "http",
    below: str | None = None,
    **headers: str,
) -> Asked:
    """`path` is below the window's, or below another."""
    given = {"host": HERE} | {key.replace("_", "-"): value for key, value in headers.items()}
    scope = {
        "type": kind,
        "path": (access.path if below is None else below) + path,
        "method": method,
        "query_string": query.encode("latin1"),
        "headers": [(k.encode(), v.encode("latin1")) for k, v in given.items()],
        "state": {"connection": Connection(Peer.OWN)},
    }
    messages: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        messages.append(dict(message))

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    asyncio.run(Guard(_page, access)(scope, receive, send))
    return Asked(messages)


@pytest.fixture
def access() -> Access:
    return Access(PORT)


@pytest.fixture
def cookie(access: Access) -> str:
    """The cookie that a launch link turned into."""
    token = access.link().partition("t=")[2]
    return ask(access, "/open", query=f"t={token}").headers["set-cookie"].partition(";")[0]


def test_a_link_becomes_a_cookie_that_scripts_and_other_sites_cannot_have(access: Access) -> None:
    link = access.link()
    assert link.startswith(f"http://{HERE}{access.path}/open?t=") and len(access.path) > 30
    answer = ask(access, "/open", query=link.partition("?")[2])
    assert answer.status == 303 and answer.headers["location"] == f"{access.path}/"
    assert answer.headers["set-cookie"].endswith(f"; HttpOnly; SameSite=Strict; Path={access.path}/")


def test_the_cookie_is_worth_nothing_without_the_path(access: Access, cookie: str) -> None:
    """Every port of a host is sent its cookies, but only below their Path."""
    for below in ("", "/", "/x", access.path[:-1], access.path + "x", access.path + "/..", "/" + access.path):
        assert ask(access, "/config", below=below, cookie=cookie).status in (401, 404), below
    assert ask(access, "", cookie=cookie).status == 401
    assert ask(access, "/config", cookie=cookie).status == 200
    assert (PASSED[0]["path"], PASSED[0]["root_path"]) == ("/config", access.path)
    assert ask(Access(PORT), "/config", cookie=cookie).status == 401


def test_another_port_s_cookie_of_the_same_name_does_not_hide_the_window_s(access: Access, cookie: str) -> None:
    name = access.cookie_name
    for header in (f"{cookie}; {name}=x", f"{name}=x; {cookie}", f'a; =; {name}="; {cookie}', f"b=\xe9; {cookie}"):
        assert ask(access, "/config", cookie=header).status == 200, header


def test_a_page_on_disk_may_lead_to_a_link_and_to_nothing_else(access: Access, cookie: str) -> None:
    came = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}
    query = access.link().partition("?")[2]
    assert ask(access, "/open", "POST", query=query, **came).status == 403
    assert ask(access, "/open", query=query, sec_fetch_site="cross-site", sec_fetch_mode="cors").status == 403
    answer = ask(access, "/open", query=query, **came)
    assert answer.status == 200 and "set-cookie" in answer.headers and f"url={access.path}/" in answer.text
    for path in ("/", "/config", "/gradio_api/queue/data"):
        assert ask(access, path, cookie=cookie, **came).status == 403


def test_a_link_is_not_used_up_by_a_look(access: Access) -> None:
    query = access.link().partition("?")[2]
    assert ask(access, "/open", "HEAD", query=query).status == 401
    assert ask(access, "/open", query=query).status == 303


def test_secrets_of_any_letters_are_compared(access: Access, cookie: str) -> None:
    assert ask(access, "/open", query="t=%e9%ff").status == ask(access, "/open", query="t=%C3%A9").status == 401
    assert ask(access, "/config", cookie=f"{access.cookie_name}=\xe9").status == 401
    assert ask(access, "/control", "POST", below="", **{CONTROL_HEADER.replace("-", "_"): "\xe9"}).status == 401
    assert ask(access, "/config", below="/\udcff\xe9", cookie=cookie).status == 401
    assert ask(access, "/config", query="a=\xe9", cookie=cookie).status == 400


def test_a_proxy_that_is_not_there_does_not_say_where_the_page_is(access: Access, cookie: str) -> None:
    given = {"x_forwarded_host": "evil.example", "x_gradio_server": "http://evil.example", "forwarded": "for=1"}
    assert ask(access, "/config", cookie=cookie, **given).status == 200
    assert [name for name, _ in PASSED[0]["headers"]] == [b"host"]


def test_other_methods_are_not_answered(access: Access, cookie: str) -> None:
    for method in ("PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "x"):
        assert ask(access, "/config", method, cookie=cookie).status == 405


def test_a_link_works_once_and_a_guess_never(access: Access) -> None:
    query = access.link().partition("?")[2]
    assert ask(access, "/open", query=query).status == 303
    again = ask(access, "/open", query=query)
    assert again.status == 401 and "set-cookie" not in again.headers
    assert ask(access, "/open", query="t=").status == 401
    assert ask(access, "/open").status == 401


def test_the_page_is_for_who_has_the_cookie(access: Access, cookie: str) -> None:
    assert ask(access, "/").status == 401
    assert ask(access, "/", cookie="finetune-local-4711=guess").status == 401
    assert ask(access, "/", cookie=cookie.replace("4711", "4712")).status == 401
    assert ask(access, "/", cookie=cookie).text == "the page"


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1", "127.0.0.1:80", "0.0.0.0:4711", "localhost.evil:4711", ""]
)
def test_another_host_is_refused(access: Access, cookie: str, host: str) -> None:
    assert ask(access, "/", host=host, cookie=cookie).status == 421


def test_localhost_is_this_host_too(access: Access, cookie: str) -> None:
    assert ask(access, "/", host=f"localhost:{PORT}", cookie=cookie).status == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:80", f"https://{HERE}", "http://localhost"]
)
@pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/gradio_api/upload"])
def test_another_origin_can_neither_post_nor_upload(access: Access, cookie: str, origin: str, path: str) -> None:
    assert ask(access, path, "POST", origin=origin, cookie=cookie).status == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_the_browsers_word_for_another_site_is_taken(access: Access, cookie: str, site: str) -> None:
    assert ask(access, "/", sec_fetch_site=site, cookie=cookie).status == 403
    assert ask(access, "/", sec_fetch_site="none", cookie=cookie).status == 200
    assert ask(access, "/gradio_api/upload", "POST", sec_fetch_site="none", cookie=cookie).status == 403


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/dev/reload",
        "/gradio_api/vibe-edit",
        "/gradio_api/info",
        "/gradio_api/call/x",
        "/gradio_api/run/predict",
        "/gradio_api/component_server",
        "/gradio_api/mcp/sse",
        "/monitoring",
        "/monitoring/summary",
        "/openapi.json",
        "/docs",
        "/login",
        "/gradio_api/proxy=http://evil.example/",
        "/assets/../secret",
        "/ftl/../../etc/passwd",
        "/pwa_icon",
        "/gradio_api/deep_link",
        "/gradio_api/file",
    ],
)
def test_routes_the_page_does_not_use_are_closed(access: Access, cookie: str, path: str) -> None:
    assert ask(access, path, cookie=cookie).status == 404


def test_nothing_may_be_framed_or_come_from_elsewhere(access: Access, cookie: str) -> None:
    for answer in (ask(access, "/", cookie=cookie), ask(access, "/"), ask(access, "/none", cookie=cookie)):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "http" not in policy
        assert "object-src" not in policy or "object-src 'none'" in policy
        assert answer.headers["x-frame-options"] == "DENY" and "camera=()" in answer.headers["permissions-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_websockets_are_closed(access: Access, cookie: str) -> None:
    assert ask(access, "/", kind="websocket", cookie=cookie).kind == "websocket.close"


def test_a_second_start_needs_the_instance_files_key(access: Access, cookie: str) -> None:
    access.on_control = lambda do: f"did {do}"
    header = CONTROL_HEADER.replace("-", "_")
    assert ask(access, "/control", "POST", "do=show", below="", cookie=cookie).status == 401
    assert ask(access, "/control", "POST", "do=show", below="", **{header: "guess"}).status == 401
    assert ask(access, "/control", "POST", "do=show", below="", **{header: access.control_key}).text == "did show"
    assert (
        ask(
            access,
            "/control",
            "POST",
            "do=show",
            below="",
            origin="https://evil.example",
            **{header: access.control_key},
        ).status
        == 403
    )


def test_only_the_page_s_own_scripts_run(access: Access, cookie: str) -> None:
    policies = [ask(access, "/", cookie=cookie).headers["content-security-policy"] for _ in range(2)]
    scripts = [next(part for part in policy.split("; ") if part.startswith("script-src")) for policy in policies]
    assert scripts[0] != scripts[1] and "'unsafe-inline'" not in scripts[0] and "'nonce-" in scripts[0]
    nonce = PASSED[0]["finetune_local.nonce"]
    assert f"'nonce-{nonce}'" in scripts[1]
    page = with_nonce(b'<head><script>1</script><script src="x"><link rel="manifest" href="/m"><scripted>', PASSED[0])
    marked = f'<head><script nonce="{nonce}">1</script><script nonce="{nonce}" src="x"><scripted>'
    assert page.decode() == marked
    other = ask(access, "/gradio_api/file=/x", cookie=cookie).headers["content-security-policy"]
    assert "script-src" not in other and other.endswith("sandbox")
