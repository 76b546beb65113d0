"""Chromium, Chrome or Edge as the window: `--app=` shows a page without a browser's bars. Where the system has no WebView.

It has its own profile and reaches no address but this machine's: all others it asks of a proxy that is not there.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

LINUX = (
    "chromium",
    "chromium-browser",
    "google-chrome-stable",
    "google-chrome",
    "microsoft-edge-stable",
    "microsoft-edge",
    "brave-browser",
)
MAC = (
    "Google Chrome.app/Contents/MacOS/Google Chrome",
    "Chromium.app/Contents/MacOS/Chromium",
    "Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
)
WINDOWS = (
    "Microsoft/Edge/Application/msedge.exe",
    "Google/Chrome/Application/chrome.exe",
    "Chromium/Application/chrome.exe",
)
SNAP = Path("/snap/bin/chromium")

# The last line of defence comes last: whatever the others leave, no name is looked up and no other address is asked.
QUIET = (
    "--no-first-run",
    "--no-default-browser-check",
    "--no-pings",
    "--no-service-autorun",
    "--disable-background-networking",
    "--disable-breakpad",
    "--disable-client-side-phishing-detection",
    "--disable-component-extensions-with-background-pages",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-extensions",
    "--disable-features=AutofillServerCommunication,CertificateTransparencyComponentUpdater,MediaRouter,OptimizationHints,Translate",
    "--disable-search-engine-choice-screen",
    "--disable-sync",
    "--metrics-recording-only",
    "--password-store=basic",
    "--use-mock-keychain",
    "--disable-quic",
    "--proxy-server=http://127.0.0.1:9",
    "--proxy-bypass-list=127.0.0.1",
)


def find(environment: Mapping[str, str] = os.environ, system: str = sys.platform) -> Path | None:
    """The first browser of this kind that is installed."""
    return next(_installed(environment, system), None)


def command(browser: Path, link: str, profile: Path, size: tuple[int, int]) -> list[str]:
    """How it is started as a window."""
    made = [str(browser), f"--app={link}", f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}", *QUIET]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        # It refuses to start as root otherwise, and says so in a bar; it is shown nothing but our own page.
        made += ["--no-sandbox", "--test-type"]
    return made


def profile_for(browser: Path, folder: Path, snap: Path = SNAP) -> Path:
    """Its profile: `folder`, but Ubuntu's snap may not write into hidden folders, where that usually lies."""
    if snap.exists() and browser.name.startswith("chromium"):
        return Path.home() / "snap" / "chromium" / "common" / "finetune-local"
    return folder


def end_orphan(profile: Path) -> None:
    """End the one that has the profile: its server was killed, and a new one would be shown by it without a word to us."""
    import psutil

    try:
        _, _, pid = (profile / "SingletonLock").readlink().name.rpartition("-")  # HOST-PID
        process = psutil.Process(int(pid))
        if any(str(profile) in argument for argument in process.cmdline()):
            process.terminate()
            process.wait(10)
    except (OSError, ValueError, psutil.Error):
        return


def _installed(environment: Mapping[str, str], system: str) -> Iterator[Path]:
    if system == "darwin":
        places = [Path("/Applications"), Path.home() / "Applications"]
        yield from (place / name for name in MAC for place in places if (place / name).is_file())
    elif system == "win32":
        roots = [
            environment[name] for name in ("ProgramFiles(x86)", "ProgramFiles", "LOCALAPPDATA") if name in environment
        ]
        yield from (Path(root) / name for name in WINDOWS for root in roots if (Path(root) / name).is_file())
    else:
        yield from (Path(found) for name in LINUX if (found := shutil.which(name, path=environment.get("PATH"))))
