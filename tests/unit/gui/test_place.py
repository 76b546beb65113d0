from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune_local.gui.window import place
from finetune_local.gui.window.place import Place, Screen, corrected

LAPTOP, BESIDE = Screen(0, 0, 1440, 900), Screen(1440, -100, 2560, 1440)


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    file, kept = tmp_path / "放 place.json", Place(-30, 40, 900, 700, True, 1.25)
    place.save(file, kept)
    assert place.load(file) == kept
    assert place.load(tmp_path / "none.json") == Place()


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"x": "left", "width": 3.5, "maximized": 1, "zoom": null}'])
def test_a_damaged_file_is_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "place.json").write_text(text, "utf-8")
    assert place.load(tmp_path / "place.json") == Place()


def test_good_values_beside_damaged_ones_are_kept(tmp_path: Path) -> None:
    (tmp_path / "place.json").write_text(json.dumps({"width": 1000, "x": None, "zoom": 40, "gone": 1}), "utf-8")
    assert place.load(tmp_path / "place.json") == Place(width=1000, zoom=3.0)


@pytest.mark.parametrize(
    ("before", "screens", "after"),
    [
        (Place(100, 50), [LAPTOP], Place(100, 50)),
        (Place(1500, 50), [LAPTOP, BESIDE], Place(1500, 50)),
        (Place(1500, 50), [LAPTOP], Place(None, None)),  # the second screen is gone
        (Place(-1250, 50), [LAPTOP], Place(None, None)),  # only a sliver of it is left
        (Place(-1000, 50), [LAPTOP], Place(-1000, 50)),
        (Place(100, -40), [LAPTOP], Place(None, None)),  # its title is above the screen
        (Place(100, 870), [LAPTOP], Place(None, None)),
        (Place(0, 0, 4000, 3000), [LAPTOP], Place(0, 0, 1440, 900)),
        (Place(0, 0, 10, 10), [LAPTOP], Place(0, 0, *place.SMALLEST)),
        (Place(), [Screen(0, 0, 640, 480)], Place(None, None, 640, 480)),
        (Place(5, 5), [], Place(5, 5)),
    ],
)
def test_a_place_is_put_where_it_can_be_seen(before: Place, screens: list[Screen], after: Place) -> None:
    assert corrected(before, screens) == after
