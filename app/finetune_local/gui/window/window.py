"""The process of the window: it shows the page in the system's WebView, by pywebview. Run `python -m finetune_local.gui.window.window`.

It reads WindowOptions as one line of JSON from standard input, so that the launch link is in no list of processes, and then the lines
"show" and "quit". The exit code is 0 when the user closed the window, and 3 if no window can be opened here; then the last line on
standard error says why. The server and all runs and jobs are separate processes, so a crash of this one does not affect them.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from finetune_local import __version__
from finetune_local.gui.window import gtk, place
from finetune_local.gui.window.opening import open_address
from finetune_local.gui.window.place import PlaceRecorder, Screen
from finetune_local.system import paths
from finetune_local.system.messages import message_of
from finetune_local.system.untrusted.text import ForeignTextError, parse_json_object, read_json_object

NO_WINDOW = 3
"""Exit code: there is no WebView, or no screen."""


@dataclass(frozen=True)
class WindowOptions:
    """Everything the window's process needs to know."""

    origin: str
    """The server's origin, which the window may not leave."""
    page: str
    """The page's address, which works once the link has set the cookie."""
    words: Mapping[str, str]
    """The window's texts in the user's language, by their keys in assets/strings/desktop.toml."""
    icon: str
    """Path of the icon."""
    place: str
    """Path of the file that keeps the window's size and place."""
    diagnostics: str
    """Path of the file with what this machine has."""
    background: str
    """CSS colour of the window before the page is drawn."""
    link: str = ""
    """A launch link."""

    def as_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, line: str) -> Self:
        """The options in a line of JSON, which comes from as_json()."""
        return cls(**parse_json_object(line))


class Api:
    """The functions of the window that the page can call, as window.pywebview.api. Only public methods are exposed."""

    def __init__(self, recorder: PlaceRecorder) -> None:
        self._recorder = recorder
        self._window: Any = None
        self._folder = ""

    def pick(self, kind: str) -> str | None:
        """Show the system's dialog to pick a "file", "files", a "folder", or a file to "save". Returns the paths, one per line; None if cancelled."""
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
        """Show a web page in the user's browser."""
        if address.startswith(("http://", "https://")):
            open_address(address)

    def zoomed(self, zoom: float) -> None:
        """Save the zoom factor of the page."""
        self._recorder.change(zoom=float(zoom))

    def full_screen(self) -> None:
        """Enter or leave full screen."""
        self._window.toggle_fullscreen()

    def quit(self) -> None:
        """Close the window."""
        self._window.destroy()


def main() -> int:
    """Show the window until it is closed. Returns the exit code."""
    os.environ.setdefault("PYWEBVIEW_LOG", "CRITICAL")
    if sys.platform == "linux":
        if (reason := gtk.no_screen()) is not None:
            return _no_window(reason)
        gtk.find_libraries()
        gtk.before_start()
    sys.argv = ["finetune-local"]  # desktops group windows and find their icon by this name
    try:
        import webview
        from webview.errors import WebViewException
    except ImportError as error:
        return _no_window(f"pywebview is not installed ({error})")
    line = sys.stdin.readline()
    if not line:  # the server's process has ended
        return 0
    try:
        shown = _show(WindowOptions.read(line))
    except WebViewException as error:
        return _no_window(
            f"{error} Linux has it as python3-gi and gir1.2-webkit2-4.1."
            if sys.platform == "linux"
            else message_of(error)
        )
    assert webview.windows is not None
    return 0 if shown else _no_window("no window could be opened on this screen")


def _show(options: WindowOptions) -> bool:
    """Open the window and wait until it is closed. Returns False if it never appeared."""
    import webview

    recorder = PlaceRecorder(Path(options.place))
    api = Api(recorder)
    words = options.words
    webview.settings["ALLOW_DOWNLOADS"] = True
    webview.settings["ALLOW_FILE_URLS"] = False
    before = recorder.place
    window = webview.create_window(
        words["app"],
        options.link,
        js_api=api,
        width=before.width,
        height=before.height,
        x=before.x,
        y=before.y,
        min_size=place.SMALLEST,
        maximized=before.maximized,
        background_color=options.background,
        text_select=True,
        zoomable=True,
    )
    assert window is not None
    api._window = window
    script = (paths.assets() / "ui" / "window.js").read_text("ascii")

    def add_script() -> None:
        values = json.dumps({"words": dict(words), "zoom": recorder.place.zoom})
        window.run_js(f"window.ftlWindowOptions = {values};\n{script}")

    def settle() -> bool | None:
        return _settle(window, recorder)

    def before_show() -> None:
        if webview.renderer == "gtkwebkit2":
            gtk.harden(window.native, options.origin, options.page)

    window.events.initialized += settle
    window.events.before_show += before_show
    window.events.loaded += add_script
    recorder.watch(window)
    threading.Thread(target=_read_commands, args=(window,), daemon=True).start()
    menu = menu_of(window, words, Path(options.diagnostics))
    webview.start(menu=menu, icon=options.icon, localization=localization(words))
    recorder.save()
    return bool(window.events.shown.is_set())


def _settle(window: Any, recorder: PlaceRecorder) -> bool | None:
    """Before the window is created, move it onto a screen. Returns False if there is no screen."""
    import webview

    try:
        screens = [Screen(int(s.x), int(s.y), int(s.width), int(s.height)) for s in webview.screens]
    except (AttributeError, TypeError):  # GTK without a display
        return False
    found = place.corrected(recorder.place, screens)
    origin = screens[0] if screens and webview.renderer == "gtkwebkit2" else Screen(0, 0, 0, 0)
    window.initial_width, window.initial_height = found.width, found.height
    window.initial_x = None if found.x is None else found.x - origin.x  # GTK's origin is the first screen's corner
    window.initial_y = None if found.y is None else found.y - origin.y
    recorder.place = found
    return None


def _read_commands(window: Any) -> None:
    """Carry out the lines of standard input. If the server's process is killed the window stays, and its page says that the app ended."""
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


def _no_window(reason: str) -> int:
    print(reason, file=sys.stderr, flush=True)  # noqa: T201 - the server's process reads it
    return NO_WINDOW


def menu_of(window: Any, words: Mapping[str, str], machine: Path) -> list[Any]:
    """The menu, for webview.start(). What it does in the page is done by assets/ui/window.js. `machine`: see diagnostics()."""
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
    """Versions and what this machine has, for a report of a defect, without the user's name. `machine` is the file machine.json."""
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
    """pywebview's own texts, in the window's language."""
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
    """Run a script in the page, if there is one."""
    from webview.errors import JavascriptException, WebViewException

    with suppress(WebViewException, JavascriptException):
        window.evaluate_js(script + "; null")


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads of the library may wait for an event loop that has ended, and would keep the process alive
