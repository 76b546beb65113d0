"""Chromium, Chrome or Edge as the window, for systems without a WebView: `--app=` shows a page without toolbars.

It has a separate profile and can reach this machine only: requests to any other address go to a proxy that does not exist.
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

# The proxy is the last line of defence: whatever the other switches miss, no name is resolved and no other address is contacted.
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
    """The first installed browser of the Chromium family; None if there is none."""
    return next(_installed(environment, system), None)


def command(browser: Path, link: str, profile: Path, size: tuple[int, int]) -> list[str]:
    """The command that starts it as a window. `link` may be any address; `size` is in pixels."""
    arguments = [
        str(browser),
        f"--app={link}",
        f"--user-data-dir={profile}",
        f"--window-size={size[0]},{size[1]}",
        *QUIET,
    ]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        # As root it starts only without its sandbox, and --test-type hides the warning. It shows no page but the app's.
        arguments += ["--no-sandbox", "--test-type"]
    return arguments


def profile_for(browser: Path, folder: Path, snap: Path = SNAP) -> Path:
    """The folder of its profile: `folder`, except for Ubuntu's snap, which cannot write into hidden folders."""
    if snap.exists() and browser.name.startswith("chromium"):
        return Path.home() / "snap" / "chromium" / "common" / "finetune-local"
    return folder


def end_orphan(profile: Path) -> None:
    """End a browser that still runs with this profile after its server was killed. It would show a new window itself, and the started
    process would end at once."""
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
