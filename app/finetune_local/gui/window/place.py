"""The window's size, position and zoom, saved in home/window/place.json. A position that is on no screen any more is dropped."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from finetune_local.system.errors import DiskFailed
from finetune_local.system.files import write_text
from finetune_local.system.untrusted.text import ForeignTextError, read_json_object

SMALLEST = (720, 520)
"""The window's minimum width and height in pixels."""

_GRIP = 80
"""Pixels of the title bar that must be on a screen, so that the window can be moved."""

_ZOOMS = (0.5, 3.0)

_SETTLED = 0.4
"""Seconds without a change after which size and place are saved."""


@dataclass(frozen=True)
class Screen:
    """A screen's rectangle within the desktop, in pixels."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class Place:
    """The window's frame in pixels (x and y None: centred on the screen) and the zoom factor of its page."""

    x: int | None = None
    y: int | None = None
    width: int = 1280
    height: int = 860
    maximized: bool = False
    zoom: float = 1.0


def load(file: Path) -> Place:
    """The saved place. Missing and damaged values are replaced by defaults."""
    try:
        saved = read_json_object(file)
    except (OSError, ForeignTextError):
        return Place()
    default, found = Place(), dict[str, int | float | bool]()
    for field in fields(Place):
        value = saved.get(field.name)
        usual = getattr(default, field.name)
        kind = int if usual is None else type(usual)
        if type(value) is kind or (kind is float and type(value) is int):
            found[field.name] = value
    place = Place(**found)  # type: ignore[arg-type]
    return replace(place, zoom=min(_ZOOMS[1], max(_ZOOMS[0], place.zoom)))


def save(file: Path, place: Place) -> None:
    """Write the file. Raises DiskFailed, OSError."""
    write_text(file, json.dumps(asdict(place)) + "\n")


def corrected(place: Place, screens: Sequence[Screen]) -> Place:
    """The place on the current screens: no larger than its screen, with its title bar within reach."""
    if not screens:
        return place
    width, height = max(place.width, SMALLEST[0]), max(place.height, SMALLEST[1])
    place = replace(place, width=width, height=height)
    on = next((screen for screen in screens if _reachable(place, screen)), None)
    screen = on or screens[0]
    place = replace(place, width=min(width, screen.width), height=min(height, screen.height))
    return place if on is not None else replace(place, x=None, y=None)


def _reachable(place: Place, screen: Screen) -> bool:
    if place.x is None or place.y is None:
        return False
    across = min(place.x + place.width, screen.x + screen.width) - max(place.x, screen.x)
    return across >= _GRIP and screen.y <= place.y <= screen.y + screen.height - _GRIP


class PlaceRecorder:
    """Saves the size and place of a window once they have not changed for a moment.

    Reading them waits for the window's own event loop, so it happens in a daemon thread, which may wait forever once the window is gone.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self.place = load(file)
        self._changed = threading.Event()
        self._window: Any = None

    def watch(self, window: Any) -> None:
        """Record a window from now on."""
        self._window = window
        events = window.events
        events.resized += self._moved
        events.moved += self._moved
        events.maximized += lambda: self.change(maximized=True)
        events.restored += lambda: self.change(maximized=False)
        threading.Thread(target=self._record, daemon=True).start()

    def change(self, **values: Any) -> None:
        """Set values of the place, which is then saved."""
        self.place = replace(self.place, **values)
        self._changed.set()

    def _moved(self, *_: Any) -> None:
        self._changed.set()

    def _record(self) -> None:
        while self._changed.wait():
            self._changed.clear()
            if self._changed.wait(_SETTLED):
                continue
            if not self.place.maximized:
                window = self._window
                self.place = replace(self.place, x=window.x, y=window.y, width=window.width, height=window.height)
            self.save()

    def save(self) -> None:
        """Save it. On a full disk only the place is lost."""
        with suppress(DiskFailed, OSError):
            save(self._file, self.place)
