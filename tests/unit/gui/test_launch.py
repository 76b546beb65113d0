"""Starting the app: what a second start is told, a port that is taken, what goes on when it is closed; and the window's words."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetune_local.gui.i18n.strings import LANGUAGES, Strings
from finetune_local.gui.window import launch as launching
from finetune_local.gui.window import window
from finetune_local.gui.window.displays import Outcome
from finetune_local.gui.window.launch import App, LaunchRequest, launch
from finetune_local.spec.run import parse_spec
from finetune_local.system import paths
from finetune_local.system.errors import SpecError
from finetune_local.system.paths import Home
from finetune_local.training.run_folder import runs
from working import mark_running


@pytest.fixture(autouse=True)
def _no_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "no_screen", lambda: "there is none in a test")


@pytest.fixture
def apps() -> Iterator[list[App]]:
    made: list[App] = []
    yield made
    for app in made:
        app.server.socket.close()
        app.context.close()


def app_of(home: Home, apps: list[App], wanted: LaunchRequest, said: list[str]) -> App:
    apps.append(App(home, wanted, said.append))
    return apps[-1]


def test_a_port_that_is_taken_is_a_sentence(home: Home) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SpecError, match=rf"--port {port}: another program uses it. Choose another"):
            launch(home, LaunchRequest("nothing", port), print)
    assert not (home.window / "instance.json").exists()


def test_another_start_is_shown_the_window_or_gets_a_link(home: Home, apps: list[App]) -> None:
    app = app_of(home, apps, LaunchRequest("nothing"), [])
    assert json.loads(app._control("show"))["link"].startswith(f"{app.server.access.page}open?t=")
    shown: list[str] = []
    app.current = SimpleNamespace(show=lambda link: not shown.append(link))  # type: ignore[assignment,func-returns-value]
    assert json.loads(app._control("show")) == {"shown": True} and len(shown) == 1
    assert "link" in json.loads(app._control("link"))
    assert app._control("anything else") == "" == app._control("")
    assert json.loads(app._control("quit")) == {"ending": True} and app.server._stopped


@pytest.mark.parametrize(
    ("show", "answer", "browser", "words", "asked"),
    [
        ("window", {"shown": True}, True, "here is its window", "show"),
        ("window", {"link": "http://x"}, True, "your browser shows it", "show"),
        ("browser", {"link": "http://x"}, True, "your browser shows it", "link"),
        ("browser", {"link": "http://x"}, False, "works once:\nhttp://x", "link"),
        ("nothing", {"link": "http://x"}, True, "works once:\nhttp://x", "link"),
    ],
)
def test_what_the_second_start_says(
    show: Any,
    answer: dict[str, Any],
    browser: bool,
    words: str,
    asked: str,
    monkeypatch: pytest.MonkeyPatch,
    home: Home,
) -> None:
    said: list[str] = []
    monkeypatch.setattr(launching, "browse", lambda *_: browser)
    questions: list[str] = []
    instance: Any = SimpleNamespace(request=lambda do: [questions.append(do), json.dumps(answer)][1])
    launching._show_other(home, instance, LaunchRequest(show), said.append)
    assert words in said[0] and questions == [asked]


def test_without_a_screen_it_prints_a_link(home: Home, apps: list[App], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "browse", lambda *_: False)
    said: list[str] = []
    app = app_of(home, apps, LaunchRequest("window"), said)
    app._display()
    assert app.displays == []
    assert len(said) == 1 and f"{app.server.access.page}open?t=" in said[0]


def test_a_window_that_is_not_there_is_followed_by_the_next(home: Home, apps: list[App]) -> None:
    said: list[str] = []
    app = app_of(home, apps, LaunchRequest("window"), said)
    outcomes = {"one": [Outcome(False, "broke", again=True), Outcome(False, "gone")],
                "two": [Outcome(True)]}  # fmt: skip
    app.displays = [SimpleNamespace(present=lambda _link, left=left: left.pop(0)) for left in outcomes.values()]  # type: ignore[misc]
    app._display()
    assert said == ["broke", "gone"] and app.server._stopped
    assert outcomes == {"one": [], "two": []}


def test_what_goes_on_is_told_when_it_is_closed(home: Home, apps: list[App], monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, str]] = []
    monkeypatch.setattr(launching, "notify", lambda *words: told.append(words))
    app = app_of(home, apps, LaunchRequest("nothing", language="zh"), [])
    app._closed()
    assert told == []
    run = runs.create(home, parse_spec({"name": "夜间", "data": {"files": ["x.jsonl"]}}, "test"))
    mark_running(run)
    app._closed()
    assert told == [("工作仍在进行", "“夜间”仍在训练。重新打开应用即可查看。")]
    app.context.preferences = app.context.preferences.model_copy(update={"notify": False})
    app._closed()
    assert len(told) == 1
    found = launching._still_running(app.context)
    assert found is not None and found[0] == "Still running: run '夜间'. Open the app again to see it."


def test_the_window_is_told_every_word_it_uses(home: Home, apps: list[App]) -> None:
    words = app_of(home, apps, LaunchRequest("nothing"), [])._window_options().words
    used = set(re.findall(r'words\["(\w+)"\]', Path(window.__file__).read_text("utf-8")))
    script = (paths.assets() / "ui" / "window.js").read_text("ascii")  # GTK counts characters as bytes
    used |= set(re.findall(r"\bwords\.(\w+)", script))
    assert used <= set(words) and len(used) > 15
    for language in LANGUAGES:
        t = Strings(language)
        menu_words = [t(f"desktop.{name}") for name in launching.WORDS]
        assert not [word for word in menu_words if re.search(r"[:()]", word)], (
            "GTK takes these in a menu's name for its own"
        )


def test_diagnostics_hold_what_helps_and_no_user_s_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "张三")
    file = tmp_path / "machine.json"
    file.write_text(json.dumps({"home": str(tmp_path / "张三" / "data"), "backend": "torch"}), "utf-8")
    text = window.diagnostics(file)
    assert "张三" not in text and json.loads(text)["home"] == "~/data" and json.loads(text)["backend"] == "torch"
    assert "finetune-local" in json.loads(window.diagnostics(tmp_path / "none.json"))
