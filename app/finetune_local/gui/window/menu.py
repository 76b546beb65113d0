"""The window's menu, and the diagnostics behind it. What it does in the page is done by assets/ui/window.js."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from finetune_local import __version__
from finetune_local.system.untrusted.text import ForeignTextError, read_json_object


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
