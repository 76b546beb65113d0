"""The window's own process: `python -m finetune_local.gui.window.window`. The system's WebView showing the page, by pywebview.

What to show comes as one line of JSON on its input (see webview.py), so that the launch link is in no list of processes; then a line
"show" or "quit". It ends with 0 when the user closed the window, with 3 where no window can be opened here: the last line on
stderr says why. Whatever happens to it, the server and the work go on.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune_local.gui.window import gtk, place
from finetune_local.gui.window.browser import open_address
from finetune_local.gui.window.menu import localization, menu_of
from finetune_local.gui.window.place import Screen
from finetune_local.system import paths
from finetune_local.system.errors import DiskFailed
from finetune_local.system.messages import message_of
from finetune_local.system.untrusted.text import parse_json_object

NO_WINDOW = 3
"""Exit code: there is no WebView here, or no screen."""

_SETTLED = 0.4
"""Seconds without a change after which size and place are kept."""


class Api:
    """What the page may ask of its window (window.pywebview.api). Only public methods can be called."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._window: Any = None
        self._folder = ""

    def pick(self, kind: str) -> str | None:
        """The system's own dialog for a "file", several "files" (one a line), a "folder" or a file to "save"; None if left."""
        import webview

        dialogs = {"folder": webview.FileDialog.FOLDER, "save": webview.FileDialog.SAVE}
        found = self._window.create_file_dialog(
            dialogs.get(kind, webview.FileDialog.OPEN), directory=self._folder, allow_multiple=kind == "files"
        )
        chosen = [found] if isinstance(found, str) else list(found or ())
        if not chosen:
            return None
        first = Path(chosen[0])
        self._folder = str(first if kind == "folder" else first.parent)
        return "\n".join(chosen)

    def open_link(self, address: str) -> None:
        """Show a page of the web in the user's browser."""
        if address.startswith(("http://", "https://")):
            open_address(address)

    def zoomed(self, zoom: float) -> None:
        """Keep how much the page is enlarged."""
        self._keeper.change(zoom=float(zoom))

    def full_screen(self) -> None:
        """To the full screen and back."""
        self._window.toggle_fullscreen()

    def quit(self) -> None:
        """Close the window."""
        self._window.destroy()


class Keeper:
    """Writes size and place down once they have settled. Asking for them waits for the window's own loop, so it is done in a
    thread that may be left waiting when the window is gone."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.place = place.load(file)
        self._changed = threading.Event()
        self._window: Any = None

    def watch(self, window: Any) -> None:
        """Follow a window."""
        self._window = window
        events = window.events
        events.resized += self._moved
        events.moved += self._moved
        events.maximized += lambda: self.change(maximized=True)
        events.restored += lambda: self.change(maximized=False)
        threading.Thread(target=self._keep, daemon=True).start()

    def change(self, **values: Any) -> None:
        """Something is otherwise."""
        self.place = replace(self.place, **values)
        self._changed.set()

    def _moved(self, *_: Any) -> None:
        self._changed.set()

    def _keep(self) -> None:
        while self._changed.wait():
            self._changed.clear()
            if self._changed.wait(_SETTLED):
                continue
            if not self.place.maximized:
                window = self._window
                self.place = replace(self.place, x=window.x, y=window.y, width=window.width, height=window.height)
            self.save()

    def save(self) -> None:
        """Keep it; a full disk costs the window its place, nothing else."""
        with suppress(DiskFailed, OSError):
            place.save(self._file, self.place)


def main() -> int:
    """Show a window until it is closed; the exit code."""
    os.environ.setdefault("PYWEBVIEW_LOG", "CRITICAL")
    if sys.platform == "linux":
        if (reason := gtk.no_screen()) is not None:
            return _none(reason)
        gtk.find_libraries()
        gtk.before_start()
    sys.argv = ["finetune-local"]  # by this name desktops group windows and find their icon
    try:
        import webview
        from webview.errors import WebViewException
    except ImportError as error:
        return _none(f"pywebview is not installed ({error})")
    line = sys.stdin.readline()
    if not line:  # whoever started it is gone
        return 0
    try:
        shown = _show(parse_json_object(line))
    except WebViewException as error:
        return _none(
            f"{error} Linux has it as python3-gi and gir1.2-webkit2-4.1."
            if sys.platform == "linux"
            else message_of(error)
        )
    assert webview.windows is not None
    return 0 if shown else _none("no window could be opened on this screen")


def _show(told: Mapping[str, Any]) -> bool:
    """Open the window and wait until it is closed; False where it never came up."""
    import webview

    keeper = Keeper(Path(told["place"]))
    api = Api(keeper)
    words: Mapping[str, str] = told["words"]
    webview.settings["ALLOW_DOWNLOADS"] = True
    webview.settings["ALLOW_FILE_URLS"] = False
    before = keeper.place
    window = webview.create_window(
        words["app"],
        told["link"],
        js_api=api,
        width=before.width,
        height=before.height,
        x=before.x,
        y=before.y,
        min_size=place.SMALLEST,
        maximized=before.maximized,
        background_color=told["background"],
        text_select=True,
        zoomable=True,
    )
    assert window is not None
    api._window = window
    script = (paths.assets() / "ui" / "window.js").read_text("ascii")

    def put_in() -> None:
        options = json.dumps({"words": dict(words), "zoom": keeper.place.zoom})
        window.run_js(f"window.ftlWindowOptions = {options};\n{script}")

    def settle() -> bool | None:
        return _settle(window, keeper)

    def before_show() -> None:
        if webview.renderer == "gtkwebkit2":
            gtk.mend(window.native, told["origin"], told["page"])

    window.events.initialized += settle
    window.events.before_show += before_show
    window.events.loaded += put_in
    keeper.watch(window)
    threading.Thread(target=_obey, args=(window,), daemon=True).start()
    menu = menu_of(window, words, Path(told["diagnostics"]))
    webview.start(menu=menu, icon=told["icon"], localization=localization(words))
    keeper.save()
    return bool(window.events.shown.is_set())


def _settle(window: Any, keeper: Keeper) -> bool | None:
    """Before the window is made: put it where there is a screen. False where there is none."""
    import webview

    try:
        screens = [Screen(int(s.x), int(s.y), int(s.width), int(s.height)) for s in webview.screens]
    except (AttributeError, TypeError):  # GTK without a display
        return False
    found = place.corrected(keeper.place, screens)
    origin = screens[0] if screens and webview.renderer == "gtkwebkit2" else Screen(0, 0, 0, 0)
    window.initial_width, window.initial_height = found.width, found.height
    window.initial_x = None if found.x is None else found.x - origin.x  # GTK counts from the first screen's corner
    window.initial_y = None if found.y is None else found.y - origin.y
    keeper.place = found
    return None


def _obey(window: Any) -> None:
    """What the server's process says. When that ends without a word the window stays, and its page says that the app is gone."""
    import webview

    for line in sys.stdin:
        if line.strip() == "quit":
            window.destroy()
        elif line.strip() == "show":
            if webview.renderer == "gtkwebkit2":
                gtk.bring_to_front(window.native)
            else:
                window.restore()
                window.show()


def _none(reason: str) -> int:
    print(reason, file=sys.stderr, flush=True)  # noqa: T201 - the parent reads it
    return NO_WINDOW


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads of the library may wait for a loop that is gone, and would keep the process
