"""The user's own browser, which is another program: what it is given on its command line every user of the machine can read, and what it
writes is no business of ours.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from finetune_local.gui.window import launchpage
from finetune_local.gui.window.gtk import no_screen
from finetune_local.system.private import user_umask

_NO_CONSOLE = getattr(subprocess, "CREATE_NO_WINDOW", 0)
_OPEN = "import sys, webbrowser; sys.exit(not webbrowser.open(sys.argv[1]))"


def browse(link: str, folder: Path) -> bool:
    """Show the page by a launch link, which lies in a page in `folder`; False where there is no browser, or no screen. When it is
    closed, nobody tells."""
    if sys.platform == "linux" and no_screen() is not None:
        return False  # a browser in the terminal would take the terminal
    return open_address(launchpage.write(link, launchpage.readable(folder)).as_uri())


def open_address(address: str) -> bool:
    """Open an address that is no secret. In a separate process: a browser that is started here has the user's umask."""
    command = [sys.executable, "-P", "-c", _OPEN, address]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, check=False, umask=user_umask(), creationflags=_NO_CONSOLE)
    return done.returncode == 0
