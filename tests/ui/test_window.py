"""The window's own process, with a small page in the app's place: what its page may do, and what becomes of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from finetune_local.gui.i18n.strings import Strings
from finetune_local.gui.window.launch import WORDS
from finetune_local.system import paths
from ui.screen import Screen, needs_gtk

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the screen of these tests is Xvfb, which is for Linux")

PATIENCE = 60.0
PAGE = """<!doctype html><title>页</title><a id="out" href="https://example.org/weights">out</a><script>
const say = (what) => fetch("/said/" + encodeURIComponent(what));
addEventListener("pywebviewready", async () => {
  while (!window.ftlWindow) await new Promise((go) => setTimeout(go, 20));
  await say(Object.keys(pywebview.api).sort().join(" "));
  document.getElementById("out").click();
  location.href = "OTHER/stolen";
  setTimeout(() => say("still here " + location.pathname), 500);
});
</script>"""


@pytest.fixture
def asked() -> Iterator[Callable[..., tuple[str, list[str]]]]:
    """Start a server; its address, and the paths that are asked of it as they come."""
    servers: list[ThreadingHTTPServer] = []

    def start(page: str = "") -> tuple[str, list[str]]:
        paths_asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                paths_asked.append(self.path)
                body = page.encode() if self.path == "/" else b""
                self.send_response(200)
                self.send_header("content-type", "text/html; charset=utf-8")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                return

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_address[1]}", paths_asked

    yield start
    for one in servers:
        one.shutdown()
        one.server_close()


def window(environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "finetune_local.gui.window.window"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        encoding="utf-8", env={**os.environ, "WAYLAND_DISPLAY": "", **environment},
    )  # fmt: skip


def told(origin: str, folder: Path) -> str:
    t = Strings("zh")
    words = {name: t(f"desktop.{name}") for name in WORDS} | {"app": "窗口", "close": "关闭", "version": "1"}
    values = {"link": origin + "/", "origin": origin, "page": origin + "/", "words": words, "icon": str(paths.assets() / "ui" / "icon.png"),
              "place": str(folder / "place.json"), "diagnostics": str(folder / "machine.json"), "background": "#ffffff"}  # fmt: skip
    return json.dumps(values) + "\n"


def wait(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.1)


def test_the_page_cannot_leave_and_comes_back_after_a_crash(
    screen: Screen, asked: Callable[..., tuple[str, list[str]]], tmp_path: Path
) -> None:
    needs_gtk()
    other, stolen = asked()
    origin, seen = asked(PAGE.replace("OTHER", other))
    opened, browser = tmp_path / "opened", tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" >> "{opened}"\n', "utf-8")
    browser.chmod(0o755)
    process = window({"DISPLAY": screen.display, "BROWSER": str(browser)})
    try:
        assert process.stdin is not None
        process.stdin.write(told(origin, tmp_path))
        process.stdin.flush()
        wait(lambda: "/said/still%20here%20%2F" in seen, process)
        assert "/said/full_screen%20open_link%20pick%20quit%20zoomed" in seen
        wait(opened.exists, process)
        assert opened.read_text("utf-8") == "https://example.org/weights\n"
        assert stolen == []
        loads = seen.count("/")
        for child in psutil.Process(process.pid).children(recursive=True):
            if "WebProcess" in child.name():
                child.kill()
        wait(lambda: seen.count("/") > loads, process)
        process.stdin.write("show\nquit\n")
        process.stdin.flush()
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.communicate()
    place = json.loads((tmp_path / "place.json").read_text("utf-8"))
    assert place["width"] > 0 and place["zoom"] == 1.0


@pytest.mark.parametrize("display", ["", ":9876"])
def test_without_a_screen_it_says_so(display: str, tmp_path: Path) -> None:
    process = window({"DISPLAY": display})
    _, said = process.communicate(told("http://127.0.0.1:1", tmp_path), timeout=PATIENCE)
    assert process.returncode == 3
    assert said.strip().splitlines()[-1]
    if not display:
        assert "there is no screen here" in said
