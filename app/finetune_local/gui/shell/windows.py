"""The open windows and their state, which is stored on disk and survives a reload, a crash or a restart of the app.

A new window starts with a copy of the last one's state. Two windows do not overwrite each other.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from pathlib import Path
from typing import Any, TypeVar

from finetune_local.gui.shell.state import Shared, State
from finetune_local.system.errors import DiskFailed
from finetune_local.system.files import write_text
from finetune_local.system.paths import Home
from finetune_local.system.untrusted.text import ForeignTextError, parse_json_object, read_json

LAST = "last"
FIRST = "home"
"""The key of the page that a new window shows."""

_OLD_SECONDS = 7 * 86400
_DELAY = 0.4
_MAX_EARLY = 50
_SUM = "sha256"

S = TypeVar("S", bound=State)


class Window:
    """One window: the state of its pages, and what was sent to the browser. `draft` is the JSON of the state."""

    def __init__(self, folder: Path | None, name: str, draft: dict[str, Any]) -> None:
        """With `folder` None, the window has not attached yet and nothing is stored."""
        self._folder, self.name, self.draft = folder, name, draft
        self.shown: dict[str, Any] = {}
        """What was sent last, by part of a page, so that unchanged parts are not sent again."""
        self.fields: dict[str, Any] = {}
        """The content of the text fields, as far as known. A field with the right content is not sent, as the user may be typing in it."""
        self.since = 0.0
        """When the page came into view, by the browser's clock."""
        self.again = False
        """Whether the page in view must be drawn again, as it was drawn before the window attached."""
        self._unreported = ""
        self.drawing = threading.RLock()
        """Acquire it while drawing views from this state, so that of two events the one that saw the newer state is sent last."""
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()
        self._states: dict[type[State], State] = {}

    @property
    def shared(self) -> Shared:
        """The state that the pages share."""
        return self.state(Shared)

    def state(self, kind: type[S]) -> S:
        """The state of one page. Values assigned to its fields are stored."""
        with self._lock:
            known = self._states.get(kind)
            if not isinstance(known, kind):
                known = self._states[kind] = kind.read(self.draft, self._keep)
            return known

    def _keep(self, key: str, value: Any) -> None:
        """Store a value; None removes it. The file is written a moment later, so that typing does not write it at each letter."""
        if self.draft.get(key) == value:
            return
        with self._lock:
            if value is None:
                self.draft.pop(key, None)
            else:
                self.draft[key] = value
            if self._folder is not None and self._timer is None:
                self._timer = threading.Timer(_DELAY, self.save)
                self._timer.daemon = True
                self._timer.start()

    def show(self, page: str, since: float) -> bool:
        """Record that a page came into view. Returns False if a later page did (a busy machine may report them in the wrong order), or if
        this is the first page of a load (`since` 0) and another page was in view before."""
        if since < self.since or (since == 0 and page != (self.shared.page or FIRST)):
            return False
        self.since = since
        self.shared.page = page
        return True

    def missed(self, page: str, since: float) -> bool:
        """Whether a page is in view that show() was not called for, which must then be drawn. The browser has to report it twice, as a
        single report may have been overtaken by another event."""
        unreported = page if page != (self.shared.page or FIRST) and since > self.since else ""
        missed = unreported != "" and unreported == self._unreported
        self._unreported = "" if missed else unreported
        if missed:
            self.again = self.show(page, since)
        return missed

    def save(self) -> None:
        """Write the draft now. On a full disk only the newest changes are lost."""
        with self._lock:
            self._timer = None
            plain = parse_json_object(json.dumps(self.draft))
        text = json.dumps({**plain, _SUM: _sum(plain)}, ensure_ascii=False)
        if self._folder is None:
            return
        try:
            for name in (self.name, LAST):
                write_text(self._folder / f"{name}.json", text)
        except (DiskFailed, OSError):
            return

    def lacks(self, field: str, value: Any, empty: Any = "") -> bool:
        """Whether a text field has another content, which must be replaced. The value then counts as sent."""
        if self.fields.get(field, empty) == value:
            return False
        self.fields[field] = value
        return True

    def changed(self, part: str, value: Any) -> bool:
        """Whether a part of a page differs from what was sent last. The value then counts as sent."""
        if self.shown.get(part) == value:
            return False
        self.shown[part] = value
        return True


class Windows:
    """All windows of a server. Gradio identifies each load of the page by a session."""

    def __init__(self, home: Home) -> None:
        self._folder = home.window / "drafts"
        self._by_session: dict[str, Window] = {}
        self._early: dict[str, Window] = {}
        self._by_name: dict[str, Window] = {}
        self._forget_old()

    def attach(self, session: str, name: str) -> Window:
        """Attach a load of the page to its window, by the window's name: an existing window after a reload, or a new one."""
        if not re.fullmatch(r"[a-z0-9]{6,40}", name):
            name = f"w{time.time_ns()}"
        window = self._by_name.get(name)
        if window is None:
            draft = _read(self._folder / f"{name}.json")
            window = Window(self._folder, name, _read(self._folder / f"{LAST}.json") if draft is None else draft)
            self._by_name[name] = window
        window.shown.clear()
        window.fields.clear()
        self._by_session[session] = window
        early = self._early.pop(session, None)
        if early is not None and early.shared.page not in ("", FIRST):
            # The user opened this page before it attached, so it was not drawn from this window's state.
            window.again = window.show(early.shared.page, early.since)
        return window

    def of(self, session: str | None) -> Window:
        """The window of a session. Before it attaches, a temporary one that is not stored."""
        if not session or (known := self._by_session.get(session)) is None:
            while len(self._early) > _MAX_EARLY:  # sessions that never attached
                self._early.pop(next(iter(self._early)), None)
            return self._early.setdefault(session, Window(None, "", {})) if session else Window(None, "", {})
        return known

    def close(self) -> None:
        """Write all pending changes."""
        for window in self._by_name.values():
            window.save()

    def _forget_old(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for file in self._folder.glob("*.json"):
            if time.time() - file.stat().st_mtime > _OLD_SECONDS and file.stem != LAST:
                file.unlink(missing_ok=True)


def _read(file: Path) -> Any:
    try:
        values = read_json(file)
    except (OSError, ForeignTextError):
        return None if file.stem != LAST else {}
    if not isinstance(values, dict) or values.pop(_SUM, None) not in (None, _sum(values)):
        return None if file.stem != LAST else {}
    return values


def _sum(draft: dict[str, Any]) -> str:
    """The checksum of a draft. Drafts of older versions have none."""
    return hashlib.sha256(json.dumps(draft, sort_keys=True).encode("ascii")).hexdigest()
