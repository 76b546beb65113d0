"""Show a folder in the system's file manager: only one that is known to hold results, and never through a shell."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

from finetune_local.errors import SpecError


def open_folder(path: Path, known: Iterable[Path]) -> None:
    """Open a folder, or the folder a file lies in. `known` are the folders of results: nothing outside them is opened.

    Raises SpecError where it is none of them, is gone, or the system has no program for it.
    """
    folder = path if path.is_dir() else path.parent
    if not any(folder.resolve().is_relative_to(place.resolve()) for place in known):
        raise SpecError(f"{folder}: this is no folder of results, so it is not opened from here.")
    if not folder.is_dir():
        raise SpecError(f"{folder}: this folder is not there any more. It was moved or deleted.")
    program = shutil.which(_program())
    if program is None:
        raise SpecError(f"{folder}: no program that opens folders ({_program()}) is installed. Open it yourself.")
    process = subprocess.Popen(
        [program, str(folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=sys.platform != "win32",
    )
    threading.Thread(target=process.wait, daemon=True).start()  # whatever it says of itself, its end is noticed


def _program() -> str:
    return {"darwin": "open", "win32": "explorer"}.get(sys.platform, "xdg-open")
