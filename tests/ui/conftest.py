"""The app in a real browser: a server of the test's own home, and pages that fail the test on what must never happen."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Response, TimeoutError, sync_playwright  # noqa: A004

from finetune_local.runtime import jobs
from finetune_local.system import paths
from finetune_local.system.paths import Home
from finetune_local.training.run_folder import runs
from ui.screen import EXPECTED
from ui.screen import screen as screen  # a fixture, for those who open windows

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
PATIENCE = 60_000
"""Milliseconds a test waits for something to appear on a busy machine."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium; its absence is a failure where the environment expects it.

    One for each file of tests and not for the session: while Playwright is there its event loop counts as running in
    this thread, so that `asyncio.run` of a later test, or a second Playwright, would be refused.
    """
    if CHROMIUM is None:
        if os.environ.get(EXPECTED):
            pytest.fail(f"{EXPECTED} is set, but no Chromium is installed")
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield found
        found.close()


class App:
    """A running server. `problems` collects what pages did that none may do; `expected` are pieces of text that excuse one."""

    def __init__(self, home: Home, browser: Browser, environment: dict[str, str]) -> None:
        self.home, self._browser, self._environment = home, browser, environment
        self.problems: list[str] = []
        self.expected = [
            "AbortError: signal is aborted",
            "Connection errored out",
        ]  # what a page says that is loaded again
        self.hosts: set[str] = set()
        self._contexts: list[Any] = []
        self.start()

    def start(self) -> None:
        """Start (again) the server of this home."""
        self.log = self.home.root.parent / "server.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(Path(__file__).parent / "serve.py"), str(self.home.root)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **self._environment},
            )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline() or pytest.fail(self.log.read_text("utf-8", "replace")))

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def address(self) -> str:
        """Where the page is, without a slash at the end."""
        return self.link().partition("/open?")[0]

    def link(self) -> str:
        """A new launch link."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def open(self, page: str | None = None, **options: Any) -> Page:
        """A new browser window of the app, at a page. Options are Playwright's of a context (viewport, locale, color_scheme)."""
        context = self._browser.new_context(
            **{"viewport": {"width": 1280, "height": 800}, "locale": "en-GB", **options}
        )
        self._contexts.append(context)
        context.set_default_timeout(PATIENCE)
        found = context.new_page()
        self._watch(found)
        found.goto(self.link())
        found.wait_for_selector("#nav [role=tab]")
        if page is not None:
            self.go(found, page)
        return found

    def go(self, shown: Page, page: str) -> None:
        """Show a page of the app by its tab."""
        tab = f"#nav [role=tablist]:not(.visually-hidden) [data-tab-id={page}]"
        shown.click(tab)
        try:
            shown.wait_for_selector(f"#page-{page} .page-header:visible", timeout=PATIENCE / 3)
        except TimeoutError:  # a press before the page's keys are at work does nothing: press again, as anybody would
            shown.click(tab)
            shown.wait_for_selector(f"#page-{page} .page-header:visible")

    def stop(self) -> None:
        """End the server as the user does."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()

    def close(self) -> None:
        """Leave nothing behind."""
        for context in self._contexts:
            context.close()
        if self.process.poll() is None:
            self.stop()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _watch(self, page: Page) -> None:
        def on_console(message: ConsoleMessage) -> None:
            if message.type == "error":
                self._problem(f"console: {message.text} ({message.location.get('url')})")

        def on_request(request: Request) -> None:
            parts = urlsplit(request.url)
            if parts.scheme in ("http", "https", "ws", "wss"):
                self.hosts.add(parts.netloc)
                if parts.hostname != "127.0.0.1":
                    self._problem(f"a request left the machine: {request.url}")

        def on_response(response: Response) -> None:
            if response.status >= 400:
                self._problem(f"HTTP {response.status}: {response.url}")

        page.on("console", on_console)
        page.on("request", on_request)
        page.on("response", on_response)
        page.on("pageerror", lambda error: self._problem(f"script: {error}"))

    def _problem(self, text: str) -> None:
        if not any(excuse in text for excuse in self.expected):
            self.problems.append(text)


@pytest.fixture
def start_app(browser: Browser, home: Home, tmp_path: Path) -> Iterator[Callable[..., App]]:
    """Start the app on the test's home (or another), with environment variables; whatever its pages did wrong fails the test."""
    apps: list[App] = []

    def start(place: Home = home, **environment: str) -> App:
        place.root.mkdir(parents=True, exist_ok=True)
        config = {paths.CONFIG_VARIABLE: str(tmp_path / "config")}
        apps.append(App(place, browser, {"LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", **config, **environment}))
        return apps[-1]

    yield start
    for app in apps:
        app.close()
        for work in (*runs.every(app.home), *jobs.every(app.home)):
            work.kill()  # of a test that failed half-way: it would take a core from all that follow
    assert [problem for app in apps for problem in app.problems] == []


@pytest.fixture
def app(start_app: Callable[..., App]) -> App:
    """The app on the test's own home."""
    return start_app()
