"""What each open window remembers, kept on disk: a reload, a crash or a restart of the app finds it again. A new window begins with
what the last one remembered; two windows do not overwrite each other.
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
"""The page that is shown first."""

_OLD_SECONDS = 7 * 86400
_DELAY = 0.4
_MOST_EARLY = 50
_SUM = "sha256"

S = TypeVar("S", bound=State)


class Window:
    """The memory of one window: the states of its pages, and what was sent to the browser. `draft` is its JSON on disk."""

    def __init__(self, folder: Path | None, name: str, draft: dict[str, Any]) -> None:
        """`folder` None: a window that has not attached yet; nothing of it is kept."""
        self._folder, self.name, self.draft = folder, name, draft
        self.shown: dict[str, Any] = {}
        """What was sent last, by part of a page; what has not changed is not sent again."""
        self.fields: dict[str, Any] = {}
        """What the text fields of this page load hold, as far as is known. A field that is right is not sent: the user may be typing in it."""
        self.since = 0.0
        """When the page came into view, by the browser's clock."""
        self.again = False
        """Whether the page in view was drawn before the window attached and must be drawn again."""
        self._unheard = ""
        self.drawing = threading.RLock()
        """Hold it while views are drawn from this memory: of two events, the one that saw the newer state is answered last."""
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()
        self._states: dict[type[State], State] = {}

    @property
    def shared(self) -> Shared:
        """What the pages hand to each other."""
        return self.state(Shared)

    def state(self, kind: type[S]) -> S:
        """What one page remembers. What is assigned to its fields is kept."""
        with self._lock:
            known = self._states.get(kind)
            if not isinstance(known, kind):
                known = self._states[kind] = kind.read(self.draft, self._keep)
            return known

    def _keep(self, key: str, value: Any) -> None:
        """Keep a value; None removes it. Written to disk a moment later, so that typing does not write at every letter."""
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
        """A page has come into view. Returns False where a later one has (on a busy machine the two may be reported in the wrong order),
        and for the first page of a load (since 0) where another page is to be shown again."""
        if since < self.since or (since == 0 and page != (self.shared.page or FIRST)):
            return False
        self.since = since
        self.shared.page = page
        return True

    def missed(self, page: str, since: float) -> bool:
        """Whether the browser has reported twice that it shows a page whose coming into view was not reported: then it is the page in
        view and must be drawn. A single report may have crossed another one on its way."""
        unheard = page if page != (self.shared.page or FIRST) and since > self.since else ""
        missed = unheard != "" and unheard == self._unheard
        self._unheard = "" if missed else unheard
        if missed:
            self.again = self.show(page, since)
        return missed

    def save(self) -> None:
        """Write it now. On a full disk the newest changes are lost, nothing else."""
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
        """Whether a text field holds another value and must be sent; from now on it counts as sent."""
        if self.fields.get(field, empty) == value:
            return False
        self.fields[field] = value
        return True

    def changed(self, part: str, value: Any) -> bool:
        """Whether a part of a page differs from what was sent last; from now on it counts as sent."""
        if self.shown.get(part) == value:
            return False
        self.shown[part] = value
        return True


class Windows:
    """All windows of one server, by the session that Gradio gives to each page load."""

    def __init__(self, home: Home) -> None:
        self._folder = home.window / "drafts"
        self._by_session: dict[str, Window] = {}
        self._early: dict[str, Window] = {}
        self._by_name: dict[str, Window] = {}
        self._forget_old()

    def attach(self, session: str, name: str) -> Window:
        """Attach a page load to its window: the same as before a reload, or a new one."""
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
            # The user went there before the page attached: it was not drawn from this window's memory.
            window.again = window.show(early.shared.page, early.since)
        return window

    def of(self, session: str | None) -> Window:
        """The window of a session; before it attaches, one of which nothing is written."""
        if not session or (known := self._by_session.get(session)) is None:
            while len(self._early) > _MOST_EARLY:  # those that never attached
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
    """A checksum that tells an intact draft from a damaged one. Older versions wrote none."""
    return hashlib.sha256(json.dumps(draft, sort_keys=True).encode("ascii")).hexdigest()
