"""A launch link for a browser that is another program: in a page on disk that only the user may read, so that it stands on no command
line, where every user of the machine could see it.

A browser that came as a snap may not read hidden folders, in which the home usually lies: for it the page is put beside them.
"""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import suppress
from html import escape
from pathlib import Path

_PREFIX, _SUFFIX = "finetune-local-", ".html"
_OLD_SECONDS = 60.0
_SNAPS = Path("/snap")


def readable(folder: Path, snaps: Path = _SNAPS) -> Path:
    """Where such pages go: `folder`, or where a snap can read too."""
    hidden = any(part.startswith(".") for part in folder.parts)
    return Path.home() if hidden and snaps.is_dir() else folder


def write(link: str, folder: Path) -> Path:
    """A page that leads on to `link`. Those of before are removed after a while."""
    folder.mkdir(parents=True, exist_ok=True)
    clean(folder, _OLD_SECONDS)
    descriptor, name = tempfile.mkstemp(_SUFFIX, _PREFIX, folder)  # 0600
    address = escape(link, quote=True)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(
            '<!doctype html><meta charset="utf-8"><title>Finetune Local</title><meta name="referrer" content="no-referrer">'
            f'<meta http-equiv="refresh" content="0;url={address}"><a href="{address}">Finetune Local</a>'
        )
    return Path(name)


def clean(folder: Path, older_than: float = 0.0) -> None:
    """Remove such pages. The links in them work once, so what is left of them is only litter."""
    for file in folder.glob(f"{_PREFIX}????????{_SUFFIX}"):
        with suppress(OSError):
            if time.time() - file.stat().st_mtime >= older_than:
                file.unlink()
