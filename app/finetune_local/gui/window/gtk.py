"""What pywebview does not handle on GTK: finding the system's libraries, links that would navigate away, and a crash of the page's
process.

Most of it runs in the window's process. `gi` comes from the system, not from PyPI, so its types cannot be checked.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

DEBIAN = Path("/usr/lib/python3/dist-packages")
"""Where Debian and Ubuntu install Python packages such as python3-gi."""

_NVIDIA = Path("/proc/driver/nvidia/version")


def find_libraries(place: Path = DEBIAN) -> bool:
    """Make `gi` importable if the system has it for this version of Python. Returns whether it is.

    Its folder is appended to sys.path, so that no other system package replaces an installed one.
    """
    if importlib.util.find_spec("gi") is not None:
        return True
    version = f"{sys.version_info.major}{sys.version_info.minor}"
    if not any((place / "gi").glob(f"_gi.cpython-{version}*.so")):
        return False
    sys.path.append(str(place))
    importlib.invalidate_caches()
    return True


def no_screen() -> str | None:
    """The reason why no window can be opened on this Linux system; None if one can."""
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return "there is no screen here: neither $DISPLAY nor $WAYLAND_DISPLAY is set"
    return None


def before_start() -> None:
    """Disable WebKit's DMA-BUF renderer with NVIDIA's driver, with which the window stays white."""
    if _NVIDIA.exists():
        os.environ.setdefault("WEBKIT_DISABLE_DMABUF_RENDERER", "1")


def harden(native: Any, origin: str, page: str) -> None:
    """Configure a window before it is shown: it loads no page of another origin, reloads `page` after a crash of the page's process,
    is visible from the start, and is drawn without the graphics card."""
    webkit = importlib.import_module("gi.repository.WebKit2")
    view = _web_view(native, webkit.WebView)
    if view is None:
        return

    def decide(_view: Any, decision: Any, kind: Any) -> bool:
        if kind != webkit.PolicyDecisionType.NAVIGATION_ACTION:
            return False
        address = decision.get_navigation_action().get_request().get_uri() or ""
        if address == origin or address.startswith((origin + "/", "about:", "blob:" + origin)):
            return False
        decision.ignore()
        return True

    def reload(dead: Any, _reason: Any) -> None:
        dead.load_uri(page)

    # pywebview hides the view until a page loads and the main loop is idle. The view already has the window's background, so
    # there is nothing to hide.
    view.set_opacity(1.0)
    # The graphics card is for training; and emulating one costs most of a core.
    view.get_settings().set_hardware_acceleration_policy(webkit.HardwareAccelerationPolicy.NEVER)
    view.connect("decide-policy", decide)
    view.connect("web-process-terminated", reload)


def bring_to_front(native: Any) -> None:
    """Raise the window. Window managers require a recent time stamp."""
    glib = importlib.import_module("gi.repository.GLib")

    def present() -> bool:
        now = 0
        with contextlib.suppress(ImportError, AttributeError, TypeError):  # on Wayland
            x11 = importlib.import_module("gi.repository.GdkX11")
            now = x11.x11_get_server_time(native.get_window())
        native.deiconify()
        native.present_with_time(now)
        return False

    glib.idle_add(present)


def _web_view(widget: Any, kind: type) -> Any:
    if isinstance(widget, kind):
        return widget
    for child in widget.get_children() if hasattr(widget, "get_children") else ():
        if (found := _web_view(child, kind)) is not None:
            return found
    return None
