"""Open a folder in the system's file manager: only folders of results, and never through a shell."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

from finetune_local.gui.i18n.strings import Strings
from finetune_local.system.errors import SpecError
from finetune_local.system.messages import as_message
from finetune_local.system.private import user_umask


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
