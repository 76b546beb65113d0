"""What pywebview leaves open on GTK: where the libraries lie, links that would lead the window away, a page's process that died.

Only in the window's own process. `gi` comes from the system, not from PyPI, so there is nothing to check its types against.
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
    """Let `gi` be imported where the system has it for this very Python; whether it can be.

    Its folder goes to the end of the path, so that nothing else of the system's takes the place of what is installed here.
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
    """Why no window can be opened on this Linux, or None."""
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return "there is no screen here: neither $DISPLAY nor $WAYLAND_DISPLAY is set"
    return None


def before_start() -> None:
    """NVIDIA's driver and WebKit's newest way to draw do not go together: the window would stay white."""
    if _NVIDIA.exists():
        os.environ.setdefault("WEBKIT_DISABLE_DMABUF_RENDERER", "1")


def mend(native: Any, origin: str, page: str) -> None:
    """Before the window is shown: pages of another origin are not loaded into it, a page whose process ended comes back, and what
    is loaded is seen, drawn by the processor."""
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

    def again(dead: Any, _reason: Any) -> None:
        dead.load_uri(page)

    # pywebview hides the view until a page loads, and shows it from the main loop's idle time. The view has the window's own
    # background from the start, so there is nothing to hide.
    view.set_opacity(1.0)
    # The graphics card is for the training, not for buttons; and without one, drawing as if there were costs most of a core.
    view.get_settings().set_hardware_acceleration_policy(webkit.HardwareAccelerationPolicy.NEVER)
    view.connect("decide-policy", decide)
    view.connect("web-process-terminated", again)


def bring_to_front(native: Any) -> None:
    """Raise the window. With the time of now: window managers ignore those who have no recent one."""
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
