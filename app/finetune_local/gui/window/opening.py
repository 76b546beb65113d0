"""The user's own browser, which is another program: what it is given on its command line every user of the machine can read, and what it
writes is no business of ours.
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


def browse(link: str, folder: Path) -> bool:
    """Show the page by a launch link, which lies in a page in `folder`; False where there is no browser, or no screen. When it is
    closed, nobody tells."""
    if sys.platform == "linux" and no_screen() is not None:
        return False  # a browser in the terminal would take the terminal
    return open_address(write_launch_page(link, launch_page_folder(folder)).as_uri())


def open_address(address: str) -> bool:
    """Open an address that is no secret. In a separate process: a browser that is started here has the user's umask."""
    command = [sys.executable, "-P", "-c", _OPEN, address]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, check=False, umask=user_umask(), creationflags=_NO_CONSOLE)
    return done.returncode == 0


_PAGE_PREFIX, _PAGE_SUFFIX = "finetune-local-", ".html"
_PAGE_SECONDS = 60.0
_SNAPS = Path("/snap")


def launch_page_folder(folder: Path, snaps: Path = _SNAPS) -> Path:
    """Where such pages go: `folder`, or where a snap can read too."""
    hidden = any(part.startswith(".") for part in folder.parts)
    return Path.home() if hidden and snaps.is_dir() else folder


def write_launch_page(link: str, folder: Path) -> Path:
    """A page that leads on to `link`. Those of before are removed after a while."""
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
    """Remove such pages. The links in them work once, so what is left of them is only litter."""
    for file in folder.glob(f"{_PAGE_PREFIX}????????{_PAGE_SUFFIX}"):
        with suppress(OSError):
            if time.time() - file.stat().st_mtime >= older_than:
                file.unlink()


def open_folder(t: Strings, path: Path, known: Iterable[Path]) -> None:
    """Open a folder, or the folder a file lies in. `known` are the folders of results: nothing outside them is opened.

    Raises SpecError where it is outside of them, is gone, or the system has no file manager.
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
        umask=user_umask(),  # files made in the file manager get the user's usual permissions
    )
    threading.Thread(target=process.wait, daemon=True).start()  # so that the process is reaped


def _program() -> str:
    return {"darwin": "open", "win32": "explorer"}.get(sys.platform, "xdg-open")
