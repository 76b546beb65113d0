"""What a page remembers: typed, kept as plain JSON, and read whatever an older version or a damaged disk left of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from finetune_local.gui.pages.data.state import DataState
from finetune_local.gui.pages.model.state import ModelState
from finetune_local.gui.shell.state import Shared, State, stored
from finetune_local.gui.shell.windows import Window, Windows
from finetune_local.spec.run import DataSettings
from finetune_local.system.paths import Home
from finetune_local.training.run_folder.forecast import DataFacts


@dataclass(frozen=True)
class Part:
    sort: str = "name"
    picked: tuple[str, ...] = ()


@dataclass(eq=False)
class Example(State, prefix="example_"):
    row: int = 0
    side: Literal["left", "right"] = "left"
    names: tuple[str, ...] = ()
    form: Mapping[str, Any] = field(default_factory=dict)
    part: Part = field(default_factory=Part)
    other: str | None = stored("other", None)


def test_what_is_assigned_is_kept_under_the_pages_prefix_and_defaults_are_not() -> None:
    window = Window(None, "w", {})
    state = window.state(Example)
    state.row, state.side, state.names, state.other = 3, "right", ("a", "b"), ""
    state.part = Part("loss", ("x",))
    assert json.loads(json.dumps(window.draft)) == {
        "example_row": 3,
        "example_side": "right",
        "example_names": ["a", "b"],
        "example_part": {"sort": "loss", "picked": ["x"]},
        "other": "",
    }
    state.reset("row", "names", "part", "other")
    assert window.draft == {"example_side": "right"}
    assert (state.row, state.names, state.part, state.other) == (0, (), Part(), None)


def test_a_state_is_the_same_object_each_time() -> None:
    window = Window(None, "w", {"example_row": 2})
    assert window.state(Example) is window.state(Example)
    assert window.state(Example).row == 2 and window.state(DataState).row == 0


@pytest.mark.parametrize("value", ["x", [1], {"a": 1}, None, 1.5])
def test_a_value_that_does_not_fit_its_field_is_the_default(value: Any) -> None:
    state = Window(None, "w", {"example_row": value, "example_side": value, "example_names": ["a"]}).state(Example)
    assert (state.row, state.side, state.names) == (0, "left", ("a",))


def test_a_window_of_an_older_version_is_read() -> None:
    draft = {
        "page": "train",
        "model": "smollm2-135m",
        "data": {"files": ["/a.jsonl"]},
        "data_facts": {"rows": 4, "tokens": 12, "longest": 20, "held_out": 1},
        "data_row": 12,
        "data_first": 10,
        "model_waiting": ["20250101-download"],
        "form": {"training.seed": "7"},
        "setting_up": True,
        "adapters": ["a"],
        "adapter": "",
        "runs_view": "run",
        "runs_shown": "r1",
        "unknown": 5,
    }
    window = Window(None, "w", dict(draft))
    shared = window.shared
    assert (shared.page, shared.model, shared.data, shared.adapters) == (
        "train",
        "smollm2-135m",
        DataSettings(files=("/a.jsonl",)),
        ("a",),
    )
    assert shared.data_facts == DataFacts(4, 12, 20, 1) and shared.form == {"training.seed": "7"} and shared.setting_up
    assert (shared.adapter, shared.runs_view, shared.opened_run) == ("", "run", "r1")
    assert (window.state(DataState).row, window.state(DataState).first) == (12, 10)
    assert window.state(ModelState).waiting == ("20250101-download",)
    shared.run = "r1"
    assert window.draft == {**draft, "run": "r1"}, "what is not known here stays for who wrote it"


def test_a_new_start_finds_the_states(home: Home) -> None:
    before = Windows(home)
    before.attach("s", "window1").state(DataState).row = 5
    before.attach("s", "window1").shared.data_facts = DataFacts(4, 12, 20, 1)
    before.close()
    after = Windows(home).attach("t", "window1")
    assert after.state(DataState).row == 5 and after.shared.data_facts == DataFacts(4, 12, 20, 1)


def test_what_is_chosen_stays_chosen_under_its_new_name() -> None:
    shared = Window(None, "w", {}).shared
    shared.run = shared.adapter = shared.opened_run = "old"
    shared.opened_adapter, shared.adapters = "other", ("other", "old")
    shared.rename("old", "new")
    assert (shared.run, shared.adapter, shared.opened_run) == ("new", "new", "new")
    assert (shared.opened_adapter, shared.adapters) == ("other", ("other", "new"))


def test_the_states_of_all_pages_have_keys_of_their_own() -> None:
    from dataclasses import fields

    import finetune_local.gui.shell.main as main

    main.pages()
    keys = [kind.key(one) for kind in (Shared, *_pages()) for one in fields(kind)]
    assert len(keys) == len(set(keys)), sorted(key for key in keys if keys.count(key) > 1)


def _pages() -> list[type[State]]:
    return [kind for kind in State.__subclasses__() if kind.__module__.startswith("finetune_local.gui.pages.")]
