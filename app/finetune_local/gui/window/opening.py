"""Opening things in the user's own programs: the page in the browser, a folder in the file manager.

Every user of the machine can read the command line of a program. So a launch link is never on one: it is written to a page on disk that
only the user can read, and the browser opens that page.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from html import escape
from pathlib import Path

from finetune_local.gui.i18n.strings import Strings
from finetune_local.gui.window.gtk import no_screen
from finetune_local.system.errors import SpecError
from finetune_local.system.messages import as_message
from finetune_local.system.private import user_umask

_NO_CONSOLE = getattr(subprocess, "CREATE_NO_WINDOW", 0)
_OPEN = "import sys, webbrowser; sys.exit(not webbrowser.open(sys.argv[1]))"
_PAGE_PREFIX, _PAGE_SUFFIX = "finetune-local-", ".html"
_PAGE_SECONDS = 60.0
_SNAPS = Path("/snap")


def browse(link: str, folder: Path) -> bool:
    """Show the page in the user's browser by a launch link, written to a page in `folder`. Returns False if there is no browser or no
    screen. When the browser closes it cannot be observed."""
    if sys.platform == "linux" and no_screen() is not None:
        return False  # a browser in the terminal would take the terminal
    return open_address(write_launch_page(link, launch_page_folder(folder)).as_uri())


def open_address(address: str) -> bool:
    """Open an address, which must not be secret. It runs in a process with the user's umask, which the browser inherits."""
    command = [sys.executable, "-P", "-c", _OPEN, address]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, check=False, umask=user_umask(), creationflags=_NO_CONSOLE)
    return done.returncode == 0


def launch_page_folder(folder: Path, snaps: Path = _SNAPS) -> Path:
    """The folder for pages with launch links: `folder`, or the user's home where browsers may be snaps, which cannot read hidden folders."""
    hidden = any(part.startswith(".") for part in folder.parts)
    return Path.home() if hidden and snaps.is_dir() else folder


def write_launch_page(link: str, folder: Path) -> Path:
    """Write a page that leads on to `link`, readable by the user only. Removes older pages."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_launch_pages(folder, _PAGE_SECONDS)
    descriptor, name = tempfile.mkstemp(_PAGE_SUFFIX, _PAGE_PREFIX, folder)  # 0600
    address = escape(link, quote=True)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(
            '<!doctype html><meta charset="utf-8"><title>Finetune Local</title><meta name="referrer" content="no-referrer">'
            f'<meta http-equiv="refresh" content="0;url={address}"><a href="{address}">Finetune Local</a>'
        )
    return Path(name)


def remove_launch_pages(folder: Path, older_than: float = 0.0) -> None:
    """Remove pages with launch links. Their links have been used, so they serve no purpose any more."""
    for file in folder.glob(f"{_PAGE_PREFIX}????????{_PAGE_SUFFIX}"):
        with suppress(OSError):
            if time.time() - file.stat().st_mtime >= older_than:
                file.unlink()


def open_folder(t: Strings, path: Path, known: Iterable[Path]) -> None:
    """Open a folder, or the folder that contains a file, in the system's file manager, without a shell.

    `known` are the folders of results. Raises SpecError if the folder is in none of them, does not exist, or there is no file manager.
    """
    folder = path if path.is_dir() else path.parent
    if not any(folder.resolve().is_relative_to(place.resolve()) for place in known):
        raise SpecError(as_message(t("open.foreign", folder=folder)))
    if not folder.is_dir():
        raise SpecError(as_message(t("open.gone", folder=folder)))
    program = shutil.which(_program())
    if program is None:
        raise SpecError(as_message(t("open.no_program", folder=folder, program=_program())))
    process = subprocess.Popen(
        [program, str(folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=sys.platform != "win32",
        umask=user_umask(),  # files created in the file manager get the user's usual permissions
    )
    threading.Thread(target=process.wait, daemon=True).start()  # so that the process is reaped


def _program() -> str:
    return {"darwin": "open", "win32": "explorer"}.get(sys.platform, "xdg-open")
