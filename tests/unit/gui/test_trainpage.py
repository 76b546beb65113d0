"""The Train page's answers to events that overlap: a live view that was computed earlier does not stay over what was pressed later."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from finetune_local.gui.pages.train import page as trainpage
from finetune_local.gui.pages.train.page import TrainPage
from finetune_local.gui.shell.context import Context
from finetune_local.gui.shell.windows import Window
from finetune_local.system.paths import Home

pytest.importorskip("gradio")


@pytest.fixture
def page(home: Home, monkeypatch: pytest.MonkeyPatch) -> TrainPage:
    """With views that only have names, and a run whose views are drawn by nothing."""
    page = TrainPage(Context(home))
    names = (
        "head",
        "setup",
        "live",
        "subject",
        "methods",
        "goals",
        "summary",
        "name",
        "state",
        "curves",
        "answers",
        "log",
    )
    for name in names:
        setattr(page, name, name)
    run = SimpleNamespace(name="run", folder=home.runs / "run", status=lambda: "running")
    monkeypatch.setattr(trainpage.runs, "find", lambda _home, _name: run)
    monkeypatch.setattr(trainpage.runs, "running", lambda _home: [run])
    monkeypatch.setattr(page, "_live", lambda _window, _run: {"head": "live head"})
    monkeypatch.setattr(page, "_settings", lambda _window: {"head": "setup head"})
    monkeypatch.setattr(
        page.context, "watch", lambda _folder: SimpleNamespace(refresh=lambda: SimpleNamespace(end=None))
    )
    return page


def visible(shown: dict[Any, Any]) -> tuple[bool, bool]:
    return shown["setup"]["visible"], shown["live"]["visible"]


def test_what_is_pressed_while_the_page_is_drawn_is_answered_after_it(
    page: TrainPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    window, drawing, go_on, answers = Window(None, "w", {}), threading.Event(), threading.Event(), list[str]()

    def slow(_window: Window, _run: Any) -> dict[Any, Any]:
        drawing.set()
        assert go_on.wait(5)
        return {"head": "live head"}

    monkeypatch.setattr(page, "_live", slow)
    monkeypatch.setattr(trainpage.parts, "pressed", lambda _event: ("new", "", {}))
    window.shared.run = "run"

    def show() -> None:
        answers.append(page._show(window)["head"])

    def press() -> None:
        answers.append(page._act(window, None)["head"])

    first, second = threading.Thread(target=show), threading.Thread(target=press)
    first.start()
    assert drawing.wait(5)
    second.start()
    second.join(0.2)
    assert answers == [], "the press waits for the view that is being drawn"
    go_on.set()
    first.join(5)
    second.join(5)
    assert answers == ["live head", "setup head"]


def test_each_second_the_side_in_view_is_sent_again(page: TrainPage) -> None:
    window = Window(None, "w", {})
    window.shared.setting_up = True
    assert visible(page._tick(window)) == (True, False), "a live view that came late would stay for ever"
    window.shared.run = "run"
    assert visible(page._tick(window)) == (False, True)
    assert page._tick(window)["head"] == "live head"


def test_a_window_that_sets_up_nothing_shows_the_run_that_is_training(page: TrainPage) -> None:
    window = Window(None, "w", {})
    assert visible(page._show(window)) == (False, True) and window.shared.run == "run"
