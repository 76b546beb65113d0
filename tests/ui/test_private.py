"""The server beside a foreign page, a foreign name, and a caller without the cookie; and what leaves the machine: nothing."""

from __future__ import annotations

import http.client
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from playwright.sync_api import Page

from finetune_local.system.paths import Home
from ui.conftest import App

ATTACK = """
<!doctype html><title>a foreign page</title><iframe src="APP/"></iframe><script>
window.done = (async () => {
  const tried = {};
  const say = async (name, promise) => {
    try { const answer = await promise; tried[name] = answer.type === "opaque" ? "opaque" : answer.status; }
    catch (error) { tried[name] = "failed"; }
  };
  const form = new FormData();
  form.append("files", new Blob(["x"]), "evil.jsonl");
  await say("read", fetch("APP/config", {credentials: "include"}));
  await say("post", fetch("APP/gradio_api/queue/join", {method: "POST", credentials: "include", mode: "no-cors",
    headers: {"Content-Type": "text/plain"}, body: JSON.stringify({data: [], fn_index: 0, session_hash: "x"})}));
  await say("upload", fetch("APP/gradio_api/upload", {method: "POST", credentials: "include", mode: "no-cors", body: form}));
  await say("control", fetch("APP/control?do=quit", {method: "POST", headers: {"x-finetune-local-key": "guess"}}));
  return tried;
})();
</script>
"""


@pytest.fixture
def foreign(app: App) -> Iterator[str]:
    """A page of another origin on this machine, which tries to use the app."""
    body = ATTACK.replace("APP", app.address).encode()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://localhost:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


def uploads(app: App) -> list[Path]:
    return [file for file in (app.home.cache / "uploads").rglob("*") if file.is_file()]


def test_a_foreign_page_in_the_same_browser_gets_nothing(app: App, foreign: str) -> None:
    page = app.open()
    stranger: Page = page.context.new_page()  # with the app's cookie in the same browser
    refused: list[int] = []
    stranger.on("response", lambda answer: refused.append(answer.status) if answer.url.startswith(app.origin) else None)
    stranger.goto(foreign)
    tried = stranger.evaluate("window.done")
    assert tried["read"] == "failed" and tried["control"] == "failed"
    assert tried["post"] in ("opaque", "failed") and tried["upload"] in ("opaque", "failed")
    assert refused and all(status in (401, 403) for status in refused), refused
    assert uploads(app) == []
    framed = [frame.url for frame in stranger.frames if frame is not stranger.main_frame]
    assert all(stranger.frames[1].query_selector("#nav") is None for _ in framed)


@pytest.fixture
def neighbour() -> Iterator[tuple[int, list[tuple[str, str | None]]]]:
    """Another program's server on this machine: its port, and the paths and cookies that it is sent."""
    sent: list[tuple[str, str | None]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            sent.append((self.path, self.headers["Cookie"]))
            self.send_response(200)
            self.send_header("set-cookie", "finetune-local-x=y; Path=/")
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port, sent
    server.shutdown()
    server.server_close()
    thread.join()


def test_no_other_port_is_sent_the_cookie(app: App, neighbour: tuple[int, list[tuple[str, str | None]]]) -> None:
    port, sent = neighbour
    page = app.open()
    stranger = page.context.new_page()
    for host in ("127.0.0.1", "localhost", "x.localhost"):
        for path in ("/", "/config", "/open", "/gradio_api/queue/join"):
            stranger.goto(f"http://{host}:{port}{path}")
    assert len(sent) >= 12
    assert {cookie for _, cookie in sent if cookie} <= {"finetune-local-x=y"}, sent  # its own
    cookie = next(c for c in page.context.cookies() if c["name"] == f"finetune-local-{app.port}")
    with httpx.Client(base_url=app.origin, cookies={cookie["name"]: cookie["value"]}) as thief:
        for path in ("/", "/config", "/gradio_api/queue/data?session_hash=a"):
            assert thief.get(path).status_code == 401
        assert thief.get(app.address + "/ftl/alive").status_code == 200
    app.go(page, "data")  # and the neighbour's cookie does no harm


ASK = """
import json, socket, sys
port, asked = int(sys.argv[1]), json.loads(sys.argv[2])
for family, source, target in (2, "127.0.0.1", "127.0.0.1"), (2, "127.0.0.2", "127.0.0.1"), (10, "::ffff:127.0.0.1", "::ffff:127.0.0.1"), (10, "::1", "::1"):
    for method, path, headers in asked:
        s = socket.socket(family)
        try:
            s.bind((source, 0))
            s.connect((target, port))
        except OSError:
            print("none")
            continue
        lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Connection: close", *headers, "", ""]
        s.sendall("\\r\\n".join(lines).encode())
        data = b""
        while part := s.recv(65536):
            data += part
        print(data.split()[1].decode() + (" cookie" if b"set-cookie" in data.lower() else ""))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the addresses are Linux's")
def test_another_user_of_the_machine_gets_nothing_by_any_address(app: App) -> None:
    """Who has the link, the cookie, the path and the key, but is another user."""
    if os.geteuid() != 0 or not Path("/usr/bin/python3").exists():
        pytest.skip("only root can be another user too")
    link, cookie = app.link(), cookie_of(app)
    below = link.partition(str(app.port))[2]
    known = "Cookie: " + "; ".join(f"{name}={value}" for name, value in cookie.items())
    path = app.address.partition(str(app.port))[2]
    asked = [
        ("GET", below, []),
        ("GET", path + "/config", [known]),
        ("GET", path + "/gradio_api/queue/data?session_hash=a", [known]),
        ("POST", path + "/gradio_api/upload", [known, "Content-Length: 0"]),
        ("GET", path + "/", [known, "X-Forwarded-For: 127.0.0.1"]),
        ("GET", path + "/", [known, "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]),
        ("POST", "/control?do=quit", ["X-Finetune-Local-Key: x"]),
    ]
    command = ["/usr/bin/python3", "-c", ASK, str(app.port), json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, user=65534, cwd="/", check=True, timeout=60)
    answers = done.stdout.splitlines()
    assert len(answers) == 4 * len(asked) and set(answers[: 3 * len(asked)]) == {"403"}, answers
    assert set(answers[3 * len(asked) :]) == {"none"}  # nothing listens on ::1
    with httpx.Client() as client:
        assert client.get(link, follow_redirects=False).status_code == 303  # it was not used up


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limit")
def test_three_hundred_who_say_nothing_stop_nobody(home: Home) -> None:
    home.root.mkdir(parents=True)
    script = f'ulimit -n 256; exec "{sys.executable}" "{Path(__file__).parent / "serve.py"}" "{home.root}"'
    with (home.root.parent / "log").open("wb") as log:
        process = subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    port = int(process.stdout.readline())
    idle: list[socket.socket] = []
    try:
        for _ in range(300):
            idle.append(socket.create_connection(("127.0.0.1", port), timeout=5))
            idle[-1].sendall(b"GET /")
        for _ in range(10):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", "/")
            assert connection.getresponse().status == 401
            connection.close()
    finally:
        for one in idle:
            one.close()
        process.stdin.close()
        process.wait(20)
        process.stdout.close()
    said = (home.root.parent / "log").read_text("utf-8")
    assert "Traceback" not in said and len(said) < 2000, said[:2000]


def cookie_of(app: App) -> dict[str, str]:
    with httpx.Client() as client:
        answer = client.get(app.link(), follow_redirects=False)
    name, _, value = answer.headers["set-cookie"].partition(";")[0].partition("=")
    return {name: value}


def test_a_caller_without_the_cookie_or_by_another_name_is_refused(app: App) -> None:
    cookie = cookie_of(app)
    with httpx.Client(base_url=app.address, cookies=cookie) as known, httpx.Client(base_url=app.address) as unknown:
        for path in ("/", "/config", "/theme.css", "/ftl/app.js", "/ftl/alive", "/gradio_api/queue/data"):
            assert unknown.get(path).status_code == 401, path
        assert known.get("/ftl/alive").status_code == 200
        assert known.get("/", headers={"Host": f"rebound.example:{app.port}"}).status_code == 421
        files = {"files": ("x.jsonl", b"{}")}
        assert unknown.post("/gradio_api/upload", files=files).status_code == 401
        assert (
            known.post("/gradio_api/upload", files=files, headers={"Origin": "https://evil.example"}).status_code == 403
        )
        assert (
            known.post("/gradio_api/upload", files=files, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
        )
    assert uploads(app) == []


def test_files_outside_the_apps_folders_are_not_served(app: App, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("a secret", "utf-8")
    (app.home.runs / "run").mkdir()
    inside = app.home.runs / "run" / "run.json"
    inside.write_text("a secret", "utf-8")
    tries = [
        f"/gradio_api/file={secret}",
        f"/gradio_api/file={inside}",
        "/gradio_api/file=/etc/passwd",
        f"/gradio_api/file={app.home.cache}/uploads/../../runs/run/run.json",
        "/ftl/../../../pyproject.toml",
        "/ftl/%2e%2e/%2e%2e/pyproject.toml",
        "/ftl/..%2f..%2fstrings/nav.toml",
        "/static/../../../../etc/passwd",
        "/assets/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/svelte/../../__init__.py",
    ]
    with httpx.Client(base_url=app.address, cookies=cookie_of(app)) as client:
        for path in tries:
            answer = client.get(httpx.URL(app.address + path))
            assert answer.status_code >= 400 and "secret" not in answer.text and "root:" not in answer.text, path


def test_an_uploads_name_cannot_lead_anywhere(app: App) -> None:
    with httpx.Client(base_url=app.address, cookies=cookie_of(app)) as client:
        for name in (
            "../../../evil.jsonl",
            "/etc/evil.jsonl",
            "..\\..\\evil.jsonl",
            "a" * 500 + ".jsonl",
            "x\x00y.jsonl",
        ):
            client.post("/gradio_api/upload", files={"files": (name, b"{}")})
    folder = (app.home.cache / "uploads").resolve()
    found = [file for file in app.home.root.parent.rglob("*evil*") if file.is_file()]
    assert all(file.resolve().is_relative_to(folder) for file in found)


def test_the_server_listens_on_this_machine_only_and_asks_nobody(app: App) -> None:
    page = app.open()
    for name in ("model", "data", "train", "chat", "settings"):
        app.go(page, name)
    process = psutil.Process(app.process.pid)
    everyone = [process, *process.children(recursive=True)]
    connections = [c for one in everyone for c in one.net_connections(kind="inet")]
    listening = [c.laddr for c in connections if c.status == psutil.CONN_LISTEN]
    assert [(a.ip, a.port) for a in listening] == [("127.0.0.1", app.port)]
    assert all(c.raddr.ip == "127.0.0.1" for c in connections if c.raddr)
    assert app.hosts == {f"127.0.0.1:{app.port}"}


def test_the_server_holds_no_framework(app: App) -> None:
    """What takes a framework or a tokenizer is in processes of its own: of the server's files none is one of theirs."""
    page = app.open("train")
    app.go(page, "data")
    app.go(page, "home")
    maps = Path(f"/proc/{app.process.pid}/maps")
    if not maps.exists():
        pytest.skip("only Linux tells which files a process has mapped")
    mapped = maps.read_text("utf-8")
    for library in ("/torch/", "/mlx/", "/tokenizers/", "/transformers/", "/bitsandbytes/"):
        assert library not in mapped, library
