from __future__ import annotations

import json
import os
import time

import pytest

from finetune_local.gui.shell.windows import Windows
from finetune_local.system.paths import Home


def test_a_reload_finds_the_same_window(home: Home) -> None:
    windows = Windows(home)
    shared = windows.attach("session1", "window1").shared
    shared.page, shared.form = "train", {"training.seed": "7"}
    assert windows.attach("session2", "window1").shared.form == {"training.seed": "7"}
    assert windows.of("session2").shared.page == "train"


def test_a_new_start_of_the_app_finds_it_on_disk(home: Home) -> None:
    before = Windows(home)
    before.attach("s", "window1").shared.page = "data"
    before.close()
    assert Windows(home).attach("t", "window1").shared.page == "data"


def test_two_windows_do_not_write_over_each_other(home: Home) -> None:
    windows = Windows(home)
    one, two = windows.attach("a", "window1"), windows.attach("b", "window2")
    one.shared.model = "mine"
    two.shared.model = "other"
    windows.close()
    assert one.shared.model == "mine"
    assert Windows(home).attach("c", "window1").shared.model == "mine"
    assert Windows(home).attach("d", "window2").shared.model == "other"


def test_a_new_window_begins_as_the_last_one_was(home: Home) -> None:
    windows = Windows(home)
    windows.attach("a", "window1").shared.model = "mine"
    windows.close()
    assert Windows(home).attach("b", "window9").shared.model == "mine"


def test_of_a_session_that_has_not_said_which_window_it_is_nothing_is_written(home: Home) -> None:
    windows = Windows(home)
    windows.of("unknown").shared.page = "train"
    windows.of(None).shared.page = "train"
    windows.close()
    assert windows.of(None).shared.page == ""
    assert windows.of("another").shared.page == ""
    assert list((home.window / "drafts").glob("*.json")) == []


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "a" * 100, "WINDOW", "x/y"])
def test_a_name_that_is_none_cannot_lead_out_of_the_folder(home: Home, name: str) -> None:
    windows = Windows(home)
    windows.attach("s", name).shared.page = "train"
    windows.close()
    written = [file.relative_to(home.window / "drafts") for file in home.root.rglob("*.json")]
    assert written and all(file.parent.name == "" for file in written)


def test_a_damaged_draft_is_an_empty_one(home: Home) -> None:
    folder = home.window / "drafts"
    folder.mkdir()
    (folder / "window1.json").write_text("{half", "utf-8")
    (folder / "last.json").write_text("[]", "utf-8")
    assert Windows(home).attach("s", "window1").draft == {}


def test_a_draft_whose_values_were_damaged_is_begun_anew(home: Home) -> None:
    first = Windows(home)
    shared = first.attach("s", "window1").shared
    shared.page, shared.form = "train", {"rank": 8, "é": [1.5, None]}
    first.close()
    file = home.window / "drafts" / "window1.json"
    whole = json.loads(file.read_text("utf-8"))
    assert Windows(home).attach("s", "window1").draft == {"page": "train", "form": {"rank": 8, "é": [1.5, None]}}
    for damaged in ({**whole, "form": "x"}, {**whole, "sha256": "x"}, {**whole, "sha256": 1}, {**whole, "new": 1}):
        file.write_text(json.dumps(damaged), "utf-8")
        assert Windows(home).attach("s", "window1").draft == {
            "page": "train",
            "form": whole["form"],
        }  # as the last one was
    file.write_text(json.dumps({"page": "data"}), "utf-8")  # of an older version
    assert Windows(home).attach("s", "window1").draft == {"page": "data"}


def test_only_what_changed_is_sent(home: Home) -> None:
    window = Windows(home).attach("s", "window1")
    assert window.changed("chart", "a")
    assert not window.changed("chart", "a")
    assert window.changed("chart", "b")


def test_old_drafts_go(home: Home) -> None:
    folder = home.window / "drafts"
    folder.mkdir()
    for name, age in (("old1234", 30), ("new1234", 1), ("last", 30)):
        file = folder / f"{name}.json"
        file.write_text(json.dumps({}), "utf-8")
        os.utime(file, (time.time() - age * 86400,) * 2)
    Windows(home)
    assert sorted(file.stem for file in folder.iterdir()) == ["last", "new1234"]


def test_a_page_that_was_chosen_before_the_window_said_who_it_is_stays_chosen(home: Home) -> None:
    windows = Windows(home)
    shared = windows.attach("a", "window1").shared
    shared.page, shared.model = "data", "mine"
    windows.of("b").show("home", 1.0)  # what a page that loads shows first is no choice
    assert windows.attach("b", "window1").shared.page == "data"
    windows.of("c").show("train", 2.0)
    found = windows.attach("c", "window1")
    assert (found.shared.page, found.shared.model) == ("train", "mine")
    assert windows.of("c") is found


def test_a_page_that_is_told_late_is_not_the_one_in_view(home: Home) -> None:
    window = Windows(home).attach("s", "window1")
    assert window.show("chat", 20.5)
    assert not window.show("home", 20.25), "it came into view before, and is told after"
    assert window.shared.page == "chat"
    assert window.show("home", 21.0) and window.shared.page == "home"


def test_a_page_gone_to_before_the_window_said_who_it_is_is_drawn_again(home: Home) -> None:
    windows = Windows(home)
    windows.of("session").show("train", 2.0)
    assert windows.attach("session", "window1").again
    windows.of("other").show("home", 2.0)
    assert not windows.attach("other", "window2").again


def test_a_page_whose_coming_was_not_heard_is_drawn_when_it_is_told_twice(home: Home) -> None:
    window = Windows(home).attach("a", "window1")
    assert not window.missed("home", 0)  # the first page
    assert not window.missed("runs", 5) and not window.again  # it may have crossed the word of its coming
    window.show("runs", 5)
    assert not window.missed("runs", 5)
    assert not window.missed("data", 6) and not window.missed("chat", 7) and not window.missed("data", 8)  # a fast user
    assert window.missed("data", 8)
    assert window.shared.page == "data" and window.again
    assert not window.missed("data", 8)


def test_a_page_that_the_app_itself_leaves_is_not_missed(home: Home) -> None:
    window = Windows(home).attach("a", "window1")
    window.show("home", 5)
    window.shared.page = "train"  # shown by the app: the browser's word of it is on its way
    assert not any(window.missed("home", since) for since in (0, 5, 5)) and window.shared.page == "train"


def test_what_a_load_begins_with_does_not_take_the_place_of_the_page_to_be_shown_again(home: Home) -> None:
    windows = Windows(home)
    assert windows.attach("a", "window1").show("home", 0)  # a first start: it is the page
    windows.attach("a", "window1").shared.page = "train"
    assert not windows.attach("b", "window1").show("home", 0)
    assert windows.of("b").shared.page == "train"
    assert windows.of("b").show("home", 7) and windows.of("b").shared.page == "home"
