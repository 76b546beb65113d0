"""The app as it is started: its window under a screen of the test's own, Chromium in its place, the browser, one app a home."""

from __future__ import annotations

import http.client
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import psutil
import pytest

from finetune_local.gui.window import chromium
from finetune_local.spec.run import parse_spec
from finetune_local.system import paths
from finetune_local.system.paths import Home
from finetune_local.training.run_folder import runs
from ui.screen import SIZE, Screen, colours, needs, needs_gtk, shows_the_page
from working import mark_running

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the screen of these tests is Xvfb, which is for Linux")

PATIENCE = 90.0
"""Seconds, on a busy machine."""

COMMAND = [sys.executable, "-c", "from finetune_local.cli.main import main; main()", "app"]


class Started:
    """The app as a process of the test's."""

    def __init__(self, home: Home, environment: dict[str, str], *options: str) -> None:
        self.home, self.environment = home, environment
        self.screen: Screen | None = None
        self.log = home.root.parent / "app.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*COMMAND, *options], env={**os.environ, **environment}, stdout=log, stderr=log, start_new_session=True
            )

    def also(self, *options: str) -> str:
        """Start it once more, and what it says."""
        again = [*COMMAND, *options]
        done = subprocess.run(again, env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=PATIENCE, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stderr

    def said(self) -> str:
        return self.log.read_text("utf-8", "replace")

    def instance(self) -> dict[str, Any]:
        """What a second start reads."""
        file = self.home.window / "instance.json"
        wait(file.exists, self)
        return dict(json.loads(file.read_text("utf-8")))

    def release(self) -> int:
        """Wait for its end; the exit code."""
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        for child in (
            [*psutil.Process(self.process.pid).children(recursive=True)] if self.process.poll() is None else []
        ):
            child.kill()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def wait(condition: Callable[[], object], app: Started) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, app.said() + where_it_stands(app)
        time.sleep(0.2)


def where_it_stands(app: Started) -> str:
    """For a test that waited in vain: what is left of the app, and what its window's log and the screen show."""
    try:
        main = psutil.Process(app.process.pid)
        found = [
            f"{p.name()} {p.status()} {sum(p.cpu_times()[:2]):.0f} s" for p in [main, *main.children(recursive=True)]
        ]
    except psutil.Error as error:
        found = [str(error)]
    log = app.home.window / "window.log"
    return f"\n{found}\n{log.read_text('utf-8', 'replace') if log.exists() else 'no window'}\n{app.screen and colours(app.screen)}"


@pytest.fixture
def start(home: Home, tmp_path: Path) -> Iterator[Callable[..., Started]]:
    home.root.mkdir(parents=True)
    started: list[Started] = []

    def begin(*options: str, **environment: str) -> Started:
        fixed = {"LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", paths.CONFIG_VARIABLE: str(tmp_path / "config")}
        started.append(Started(home, {**fixed, **environment}, *options))
        return started[-1]

    yield begin
    for app in started:
        app.close()


def press(screen: Screen, keys: str) -> None:
    """Keys to the window that fills the screen."""
    environment = {**os.environ, "DISPLAY": screen.display}
    for words in (["mousemove", str(SIZE[0] - 60), str(SIZE[1] - 60), "click", "1"], ["key", keys]):
        subprocess.run(["xdotool", *words], env=environment, check=True)


def zoomed(screen: Screen, home: Home) -> float:
    """Press for a larger page, unless it is, and how large it then is. The page can be seen before its keys are at work."""

    def zoom() -> float:
        return float(json.loads((home.window / "place.json").read_text("utf-8"))["zoom"])

    if zoom() == 1:
        press(screen, "ctrl+plus")
        time.sleep(3)  # it is written down a little later
    return zoom()


def test_the_window_shows_the_page_and_its_end_is_the_app_s(
    screen: Screen, start: Callable[..., Started], home: Home
) -> None:
    needs_gtk()
    (home.window / "place.json").write_text(json.dumps({"x": 4000, "y": 4000, "width": 4000, "height": 4000}), "utf-8")
    run = runs.create(home, parse_spec({"name": "goes on", "data": {"files": ["x.jsonl"]}}, "test"))
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    try:
        mark_running(run, worker.pid)
        app = start(DISPLAY=screen.display, WAYLAND_DISPLAY="")
        app.screen = screen
        wait(lambda: shows_the_page(screen), app)
        assert "here is its window" in app.also()
        wait(lambda: zoomed(screen, home) > 1, app)  # its own script and its way back to Python
        place = json.loads((home.window / "place.json").read_text("utf-8"))
        assert (place["width"], place["height"]) == SIZE and 0 <= place["x"] < SIZE[0]  # it was on no screen
        press(screen, "ctrl+q")
        assert app.release() == 0, app.said()
        assert "Still running: run 'goes on'. Open the app again to see it." in app.said()
        assert worker.poll() is None
        assert not (home.window / "instance.json").exists()
    finally:
        worker.kill()
        worker.wait()


def test_chromium_stands_in_and_a_killed_app_is_replaced(
    screen: Screen, start: Callable[..., Started], home: Home, tmp_path: Path
) -> None:
    needs("Chromium", chromium.find() is not None)
    (tmp_path / "webview.py").write_text('raise ImportError("there is none in this test")', "utf-8")
    environment = {"DISPLAY": screen.display, "WAYLAND_DISPLAY": "", "PYTHONPATH": str(tmp_path)}
    app = start(**environment)
    app.screen = screen
    wait(lambda: shows_the_page(screen), app)
    assert "No separate window can be opened here: pywebview is not installed" in app.said()
    reached: set[str] = set()
    wait(lambda: reached.update(addresses(home)) or reached, app)
    assert reached == {"127.0.0.1"}
    before, windows = app.instance(), chromiums(home)
    app.process.kill()
    app.process.wait()
    after = start(**environment)
    wait(lambda: (home.window / "instance.json").exists() and after.instance() != before, after)
    assert after.instance()["pid"] == after.process.pid and after.instance()["key"] != before["key"]
    wait(lambda: not any(window.is_running() for window in windows) and chromiums(home), after)
    assert "Finetune Local has ended." in after.also("--quit")
    assert after.release() == 0, after.said()
    wait(lambda: not chromiums(home), after)


def addresses(home: Home) -> set[str]:
    """Where Chromium is connected to."""
    found: set[str] = set()
    for main in chromiums(home):
        for process in [main, *main.children(recursive=True)]:
            with suppress(psutil.Error):
                found |= {c.raddr.ip for c in process.net_connections() if c.raddr}
    return found


def chromiums(home: Home) -> list[psutil.Process]:
    """Chromium's processes of this home."""
    profile = str(home.window / "chromium")
    return [p for p in psutil.process_iter(["cmdline"]) if any(profile in part for part in p.info["cmdline"] or ())]


def test_the_browser_is_given_a_link_and_ctrl_c_ends_it(
    start: Callable[..., Started], home: Home, tmp_path: Path
) -> None:
    opened, browser = tmp_path / "opened", tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" >> "{opened}"\n', "utf-8")
    browser.chmod(0o755)
    app = start("--browser", BROWSER=str(browser), DISPLAY=":0")
    wait(opened.exists, app)
    wait(lambda: "works once" in app.said(), app)
    assert "open in your browser. Quit it in its settings, or here with Ctrl-C." in app.said()
    assert app.also() and len(opened.read_text("utf-8").split()) == 2
    port = app.instance()["port"]
    pages = [Path(unquote(urlsplit(page).path)) for page in opened.read_text("utf-8").split()]
    first, second = (page.read_text("utf-8").partition("url=")[2].partition('"')[0] for page in pages)
    assert all(
        stat.S_IMODE(page.stat().st_mode) == 0o600 for page in pages
    )  # the command line names the page, not the link
    assert asked(port, "GET", first.partition(str(port))[2])[0] == 303
    assert asked(port, "GET", first.partition(str(port))[2])[0] == 401  # it was used
    assert "works once" in (printed := app.also("--no-open")) and printed.split()[-1] not in (first, second)
    key = {"x-finetune-local-key": app.instance()["key"]}
    for refused in ({}, {"x-finetune-local-key": "guess"}, {"cookie": f"finetune-local-{port}=guess"}):
        assert asked(port, "POST", "/control?do=quit", refused)[0] == 401
    assert asked(port, "POST", "/control?do=quit", {**key, "origin": "http://evil.example"})[0] == 403
    assert asked(port, "POST", "/control?do=quit", {**key, "host": "evil.example"})[0] == 421
    assert app.process.poll() is None
    app.process.send_signal(signal.SIGINT)
    assert app.release() == 0, app.said()
    assert "Traceback" not in app.said()


def asked(port: int, method: str, path: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request(method, path, headers=headers or {})
    answer = connection.getresponse()
    text = answer.read().decode("utf-8")
    connection.close()
    return answer.status, text
