"""Long lists: search, order, pages, picked rows; and the tree of an adapter."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_local.gui.pages.adapters.detail import tree
from finetune_local.gui.pages.runs.state import RunsState
from finetune_local.gui.shell.context import Context
from finetune_local.gui.shell.windows import Window
from finetune_local.gui.widgets import lists
from finetune_local.gui.widgets.lists import Column, Place
from finetune_local.system.paths import Home

COLUMNS = [
    Column("name", "Name", lambda row: row["name"]),
    Column("loss", "Loss", lambda row: row["loss"], number=True),
]
ROWS = [{"name": name, "loss": loss} for name, loss in (("b", 2.0), ("A", None), ("c", 1.0))]


def order(sort: str, down: bool) -> list[str]:
    return [row["name"] for row in lists.ordered(ROWS, COLUMNS, Place(sort, down))]


def test_rows_without_a_value_come_last_either_way() -> None:
    assert order("loss", down=False) == ["c", "b", "A"]
    assert order("loss", down=True) == ["b", "c", "A"]
    assert order("name", down=False) == ["A", "b", "c"]
    assert order("nothing", down=True) == ["b", "A", "c"]


def test_every_word_of_a_search_must_be_there() -> None:
    rows = [{"text": "Orders LoRA 订单"}, {"text": "orders full"}]
    for search, count in (("", 2), ("ORDERS", 2), ("lora orders", 1), ("订单", 1), ("none", 0)):
        assert len(lists.matching(rows, search, lambda row: row["text"])) == count


def test_presses_move_within_the_list() -> None:
    place, shown = Place("name", down=False, page=3, picked=("x",)), ["a", "b"]

    def press(do: str, value: str, **data: str) -> Place:
        moved = lists.moved(place, do, value, data, shown, COLUMNS)
        assert moved is not None
        return moved

    assert press("list.sort", "name") == Place("name", down=True, picked=("x",))
    assert press("list.sort", "loss").down, "the most first where there are numbers"
    assert press("list.page", "4").page == 4 and press("list.page", "-1").page == 0
    assert press("list.pick", "true", key="a").picked == ("x", "a")
    assert press("list.pick", "false", key="x").picked == ()
    assert press("list.all", "true").picked == ("x", "a", "b")
    assert press("list.none", "").picked == ()
    assert lists.moved(place, "runs.open", "a", {}, shown, COLUMNS) is None


def test_a_page_that_is_not_there_is_the_last() -> None:
    rows = [{"name": str(i)} for i in range(120)]
    shown, place = lists.on_page(rows, Place("name", down=False, page=9))
    assert place.page == 2 and len(shown) == 20
    assert lists.on_page([], Place("name", down=False, page=9))[1].page == 0


@pytest.mark.parametrize("kept", [None, [], {"sort": 1, "picked": "x", "page": "no"}, {"more": 1}])
def test_a_memory_of_another_version_is_no_harm(kept: Any) -> None:
    window = Window(None, "", {"runs_list": kept})
    state = window.state(RunsState)
    assert state.list == Place("changed_time", down=True)
    state.list = Place("loss", down=False, picked=("a",))
    assert Window(None, "", window.draft).state(RunsState).list == Place("loss", down=False, picked=("a",))


def adapter(name: str, origin: str = "imported", **more: Any) -> dict[str, Any]:
    usual = {"base": "base", "run": None, "made_from": None, "extracted_from": {}, "files": []}
    return {"name": name, "origin": origin, **usual, **more}


def test_the_tree_goes_from_the_base_to_what_was_extracted(home: Home) -> None:
    context = Context(home)
    rows = [
        adapter("whole", "run", run="whole", made_from="first"),
        adapter("small", extracted_from={"adapter": "whole", "rank": 8, "error": 0.5}),
        adapter("later", "run", run="later", made_from="whole"),
        adapter("<i>", run="elsewhere"),
    ]
    for row in rows[:2]:
        drawn = tree(context, row, rows)
        places = [drawn.index(f">{word}<") for word in ("base", "whole")]
        assert places == sorted(places) and "75.0%" in drawn and "later" in drawn and "first" in drawn
    assert "&#60;i&#62;" in tree(context, rows[3], rows) and "elsewhere" in tree(context, rows[3], rows)
    lost = adapter("orphan", extracted_from={"run": "gone"})
    assert "gone" in tree(context, lost, [lost])
