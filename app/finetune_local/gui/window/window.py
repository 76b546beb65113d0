"""The window's own process: `python -m finetune_local.gui.window.window`. The system's WebView showing the page, by pywebview.

What to show comes as one line of JSON on its input (see webview.py), so that the launch link is in no list of processes; then a line
"show" or "quit". It ends with 0 when the user closed the window, with 3 where no window can be opened here: the last line on
stderr says why. Whatever happens to it, the server and the work go on.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from finetune_local import __version__
from finetune_local.gui.window import gtk, place
from finetune_local.gui.window.opening import open_address
from finetune_local.gui.window.place import PlaceRecorder, Screen
from finetune_local.system import paths
from finetune_local.system.messages import message_of
from finetune_local.system.untrusted.text import ForeignTextError, parse_json_object, read_json_object

NO_WINDOW = 3
"""Exit code: there is no WebView here, or no screen."""


class Api:
    """What the page may ask of its window (window.pywebview.api). Only public methods can be called."""

    def __init__(self, recorder: PlaceRecorder) -> None:
        self._recorder = recorder
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
        self._recorder.change(zoom=float(zoom))

    def full_screen(self) -> None:
        """To the full screen and back."""
        self._window.toggle_fullscreen()

    def quit(self) -> None:
        """Close the window."""
        self._window.destroy()


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

    recorder = PlaceRecorder(Path(told["place"]))
    api = Api(recorder)
    words: Mapping[str, str] = told["words"]
    webview.settings["ALLOW_DOWNLOADS"] = True
    webview.settings["ALLOW_FILE_URLS"] = False
    before = recorder.place
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
        options = json.dumps({"words": dict(words), "zoom": recorder.place.zoom})
        window.run_js(f"window.ftlWindowOptions = {options};\n{script}")

    def settle() -> bool | None:
        return _settle(window, recorder)

    def before_show() -> None:
        if webview.renderer == "gtkwebkit2":
            gtk.mend(window.native, told["origin"], told["page"])

    window.events.initialized += settle
    window.events.before_show += before_show
    window.events.loaded += put_in
    recorder.watch(window)
    threading.Thread(target=_obey, args=(window,), daemon=True).start()
    menu = menu_of(window, words, Path(told["diagnostics"]))
    webview.start(menu=menu, icon=told["icon"], localization=localization(words))
    recorder.save()
    return bool(window.events.shown.is_set())


def _settle(window: Any, recorder: PlaceRecorder) -> bool | None:
    """Before the window is made: put it where there is a screen. False where there is none."""
    import webview

    try:
        screens = [Screen(int(s.x), int(s.y), int(s.width), int(s.height)) for s in webview.screens]
    except (AttributeError, TypeError):  # GTK without a display
        return False
    found = place.corrected(recorder.place, screens)
    origin = screens[0] if screens and webview.renderer == "gtkwebkit2" else Screen(0, 0, 0, 0)
    window.initial_width, window.initial_height = found.width, found.height
    window.initial_x = None if found.x is None else found.x - origin.x  # GTK counts from the first screen's corner
    window.initial_y = None if found.y is None else found.y - origin.y
    recorder.place = found
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


def menu_of(window: Any, words: Mapping[str, str], machine: Path) -> list[Any]:
    """The menu, for webview.start(). `machine`: the file with what this machine has."""
    from webview.menu import Menu, MenuAction, MenuSeparator

    def drive(script: str) -> Callable[[], None]:
        return lambda: _drive(window, script)

    def about(copy: bool) -> Callable[[], None]:
        def open_it() -> None:
            facts = json.dumps([words["version"], diagnostics(machine, window)])
            _drive(window, f"ftlWindow.about(...{facts}, {json.dumps(copy)})")

        return open_it

    return [
        Menu(
            words["menu_file"],
            [
                MenuAction(words["open_data"], drive("ftlWindow.openData()")),
                MenuSeparator(),
                MenuAction(words["quit"], window.destroy),
            ],
        ),
        Menu(
            words["menu_view"],
            [
                MenuAction(words["reload"], drive("ftlWindow.reload()")),
                MenuSeparator(),
                MenuAction(words["zoom_in"], drive("ftlWindow.zoom(1)")),
                MenuAction(words["zoom_out"], drive("ftlWindow.zoom(-1)")),
                MenuAction(words["zoom_reset"], drive("ftlWindow.zoom(0)")),
                MenuSeparator(),
                MenuAction(words["full_screen"], window.toggle_fullscreen),
            ],
        ),
        Menu(
            words["menu_help"],
            [MenuAction(words["diagnostics"], about(True)), MenuAction(words["about"], about(False))],
        ),
    ]


def diagnostics(machine: Path, window: Any = None) -> str:
    """What helps whoever mends a defect: versions and what this machine has, without the user's name."""
    try:
        facts = read_json_object(machine)
    except (OSError, ForeignTextError):
        facts = {}
    facts = {"finetune-local": __version__, "python": platform.python_version(), "system": platform.platform(), **facts}
    if window is not None:
        import webview

        facts["window"] = str(webview.renderer)
    text = json.dumps(facts, indent=2, ensure_ascii=False)
    return text.replace(json.dumps(str(Path.home()), ensure_ascii=False)[1:-1], "~")


def localization(words: Mapping[str, str]) -> dict[str, str]:
    """pywebview's own words, in the window's language."""
    return {
        "linux.openFile": words["open_file"],
        "linux.openFiles": words["open_files"],
        "linux.openFolder": words["open_folder"],
        "global.saveFile": words["save_file"],
        "global.quit": words["quit"],
        "cocoa.menu.about": words["about"],
        "cocoa.menu.quit": words["quit"],
        "cocoa.menu.view": words["menu_view"],
        "cocoa.menu.fullscreen": words["full_screen"],
    }


def _drive(window: Any, script: str) -> None:
    """Run a script in the page; there may be none yet, or none any more."""
    from webview.errors import JavascriptException, WebViewException

    with suppress(WebViewException, JavascriptException):
        window.evaluate_js(script + "; null")
