"""Who may talk to the window's server, asked of the guard itself; a browser asks it again in tests/ui/test_private.py."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from finetune_local.gui.http.guard import CONTROL_HEADER, Gate, Guard
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
    gate: Gate,
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
        "path": (gate.path if below is None else below) + path,
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

    asyncio.run(Guard(_page, gate)(scope, receive, send))
    return Asked(messages)


@pytest.fixture
def gate() -> Gate:
    return Gate(PORT)


@pytest.fixture
def cookie(gate: Gate) -> str:
    """The cookie that a launch link turned into."""
    token = gate.link().partition("t=")[2]
    return ask(gate, "/open", query=f"t={token}").headers["set-cookie"].partition(";")[0]


def test_a_link_becomes_a_cookie_that_scripts_and_other_sites_cannot_have(gate: Gate) -> None:
    link = gate.link()
    assert link.startswith(f"http://{HERE}{gate.path}/open?t=") and len(gate.path) > 30
    answer = ask(gate, "/open", query=link.partition("?")[2])
    assert answer.status == 303 and answer.headers["location"] == f"{gate.path}/"
    assert answer.headers["set-cookie"].endswith(f"; HttpOnly; SameSite=Strict; Path={gate.path}/")


def test_the_cookie_is_worth_nothing_without_the_path(gate: Gate, cookie: str) -> None:
    """Every port of a host is sent its cookies, but only below their Path."""
    for below in ("", "/", "/x", gate.path[:-1], gate.path + "x", gate.path + "/..", "/" + gate.path):
        assert ask(gate, "/config", below=below, cookie=cookie).status in (401, 404), below
    assert ask(gate, "", cookie=cookie).status == 401
    assert ask(gate, "/config", cookie=cookie).status == 200
    assert (PASSED[0]["path"], PASSED[0]["root_path"]) == ("/config", gate.path)
    assert ask(Gate(PORT), "/config", cookie=cookie).status == 401


def test_another_port_s_cookie_of_the_same_name_does_not_hide_the_window_s(gate: Gate, cookie: str) -> None:
    name = gate.cookie_name
    for header in (f"{cookie}; {name}=x", f"{name}=x; {cookie}", f'a; =; {name}="; {cookie}', f"b=\xe9; {cookie}"):
        assert ask(gate, "/config", cookie=header).status == 200, header


def test_a_page_on_disk_may_lead_to_a_link_and_to_nothing_else(gate: Gate, cookie: str) -> None:
    came = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}
    query = gate.link().partition("?")[2]
    assert ask(gate, "/open", "POST", query=query, **came).status == 403
    assert ask(gate, "/open", query=query, sec_fetch_site="cross-site", sec_fetch_mode="cors").status == 403
    answer = ask(gate, "/open", query=query, **came)
    assert answer.status == 200 and "set-cookie" in answer.headers and f"url={gate.path}/" in answer.text
    for path in ("/", "/config", "/gradio_api/queue/data"):
        assert ask(gate, path, cookie=cookie, **came).status == 403


def test_a_link_is_not_used_up_by_a_look(gate: Gate) -> None:
    query = gate.link().partition("?")[2]
    assert ask(gate, "/open", "HEAD", query=query).status == 401
    assert ask(gate, "/open", query=query).status == 303


def test_secrets_of_any_letters_are_compared(gate: Gate, cookie: str) -> None:
    assert ask(gate, "/open", query="t=%e9%ff").status == ask(gate, "/open", query="t=%C3%A9").status == 401
    assert ask(gate, "/config", cookie=f"{gate.cookie_name}=\xe9").status == 401
    assert ask(gate, "/control", "POST", below="", **{CONTROL_HEADER.replace("-", "_"): "\xe9"}).status == 401
    assert ask(gate, "/config", below="/\udcff\xe9", cookie=cookie).status == 401
    assert ask(gate, "/config", query="a=\xe9", cookie=cookie).status == 400


def test_a_proxy_that_is_not_there_does_not_say_where_the_page_is(gate: Gate, cookie: str) -> None:
    given = {"x_forwarded_host": "evil.example", "x_gradio_server": "http://evil.example", "forwarded": "for=1"}
    assert ask(gate, "/config", cookie=cookie, **given).status == 200
    assert [name for name, _ in PASSED[0]["headers"]] == [b"host"]


def test_other_methods_are_not_answered(gate: Gate, cookie: str) -> None:
    for method in ("PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "x"):
        assert ask(gate, "/config", method, cookie=cookie).status == 405


def test_a_link_works_once_and_a_guess_never(gate: Gate) -> None:
    query = gate.link().partition("?")[2]
    assert ask(gate, "/open", query=query).status == 303
    again = ask(gate, "/open", query=query)
    assert again.status == 401 and "set-cookie" not in again.headers
    assert ask(gate, "/open", query="t=").status == 401
    assert ask(gate, "/open").status == 401


def test_the_page_is_for_who_has_the_cookie(gate: Gate, cookie: str) -> None:
    assert ask(gate, "/").status == 401
    assert ask(gate, "/", cookie="finetune-local-4711=guess").status == 401
    assert ask(gate, "/", cookie=cookie.replace("4711", "4712")).status == 401
    assert ask(gate, "/", cookie=cookie).text == "the page"


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1", "127.0.0.1:80", "0.0.0.0:4711", "localhost.evil:4711", ""]
)
def test_another_host_is_refused(gate: Gate, cookie: str, host: str) -> None:
    assert ask(gate, "/", host=host, cookie=cookie).status == 421


def test_localhost_is_this_host_too(gate: Gate, cookie: str) -> None:
    assert ask(gate, "/", host=f"localhost:{PORT}", cookie=cookie).status == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:80", f"https://{HERE}", "http://localhost"]
)
@pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/gradio_api/upload"])
def test_another_origin_can_neither_post_nor_upload(gate: Gate, cookie: str, origin: str, path: str) -> None:
    assert ask(gate, path, "POST", origin=origin, cookie=cookie).status == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_the_browsers_word_for_another_site_is_taken(gate: Gate, cookie: str, site: str) -> None:
    assert ask(gate, "/", sec_fetch_site=site, cookie=cookie).status == 403
    assert ask(gate, "/", sec_fetch_site="none", cookie=cookie).status == 200
    assert ask(gate, "/gradio_api/upload", "POST", sec_fetch_site="none", cookie=cookie).status == 403


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
def test_routes_the_page_does_not_use_are_closed(gate: Gate, cookie: str, path: str) -> None:
    assert ask(gate, path, cookie=cookie).status == 404


def test_nothing_may_be_framed_or_come_from_elsewhere(gate: Gate, cookie: str) -> None:
    for answer in (ask(gate, "/", cookie=cookie), ask(gate, "/"), ask(gate, "/none", cookie=cookie)):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "http" not in policy
        assert "object-src" not in policy or "object-src 'none'" in policy
        assert answer.headers["x-frame-options"] == "DENY" and "camera=()" in answer.headers["permissions-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_websockets_are_closed(gate: Gate, cookie: str) -> None:
    assert ask(gate, "/", kind="websocket", cookie=cookie).kind == "websocket.close"


def test_a_second_start_needs_the_instance_files_key(gate: Gate, cookie: str) -> None:
    gate.on_control = lambda do: f"did {do}"
    header = CONTROL_HEADER.replace("-", "_")
    assert ask(gate, "/control", "POST", "do=show", below="", cookie=cookie).status == 401
    assert ask(gate, "/control", "POST", "do=show", below="", **{header: "guess"}).status == 401
    assert ask(gate, "/control", "POST", "do=show", below="", **{header: gate.control_key}).text == "did show"
    assert (
        ask(
            gate, "/control", "POST", "do=show", below="", origin="https://evil.example", **{header: gate.control_key}
        ).status
        == 403
    )


def test_only_the_page_s_own_scripts_run(gate: Gate, cookie: str) -> None:
    policies = [ask(gate, "/", cookie=cookie).headers["content-security-policy"] for _ in range(2)]
    scripts = [next(part for part in policy.split("; ") if part.startswith("script-src")) for policy in policies]
    assert scripts[0] != scripts[1] and "'unsafe-inline'" not in scripts[0] and "'nonce-" in scripts[0]
    nonce = PASSED[0]["finetune_local.nonce"]
    assert f"'nonce-{nonce}'" in scripts[1]
    page = with_nonce(b'<head><script>1</script><script src="x"><link rel="manifest" href="/m"><scripted>', PASSED[0])
    marked = f'<head><script nonce="{nonce}">1</script><script nonce="{nonce}" src="x"><scripted>'
    assert page.decode() == marked
    other = ask(gate, "/gradio_api/file=/x", cookie=cookie).headers["content-security-policy"]
    assert "script-src" not in other and other.endswith("sandbox")
