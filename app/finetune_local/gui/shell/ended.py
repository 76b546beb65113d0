"""Runs and jobs that have just ended. Each window shows a notice of each once, whatever page is in view; the desktop shows a
notification too (gui/window/notify.py).

What is running is kept on disk, so that what ended while the app was closed is shown at the next start. What the user stopped is not
shown: they know.
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from finetune_local.gui.i18n.strings import Strings
from finetune_local.gui.shell.notice import told
from finetune_local.gui.shell.pages import RUN, page_showing
from finetune_local.gui.widgets import parts
from finetune_local.gui.widgets.html import Html
from finetune_local.runtime import job
from finetune_local.runtime.job import Job
from finetune_local.system.errors import DiskFailed, SpecError
from finetune_local.system.files import write_text
from finetune_local.system.paths import Home
from finetune_local.system.untrusted.text import read_json
from finetune_local.training import events
from finetune_local.training.run_folder import follow, runs
from finetune_local.training.run_folder.runs import Run

if TYPE_CHECKING:
    from finetune_local.gui.shell.context import Context
    from finetune_local.gui.shell.windows import Window

Kind = Literal["run", "job"]
Outcome = Literal["finished", "failed", "interrupted"]

_AT_MOST_EVERY = 0.8
_KEPT = 50


@dataclass(frozen=True)
class Ended:
    """One run or job that ended. `job` is a job's kind; `message` says why it failed; a later one has a greater `number`."""

    kind: Kind
    name: str
    outcome: Outcome
    job: str = ""
    message: str = ""
    number: int = 0

    @property
    def page(self) -> str:
        """The page that shows it."""
        return page_showing(self.job or RUN)

    def title(self, t: Strings) -> str:
        """What ended and how."""
        if self.kind == "run":
            return t(f"ended.run_{self.outcome}", name=self.name)
        return t.get(f"ended.{self.job}_{self.outcome}") or t(f"ended.job_{self.outcome}")

    def text(self, t: Strings) -> str:
        """What more there is to say, in English where it comes from the core: see translate.sentence."""
        if self.outcome == "failed" and self.message:
            return self.message
        return t("ended.run_resumable") if (self.kind, self.outcome) == ("run", "interrupted") else ""


class Endings:
    """What has ended since the server started, or while the app was closed. Any thread may look."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._file = home.window / "at_work.json"
        self._lock = threading.Lock()
        self._looked = float("-inf")
        self._number = 0
        self._ended: list[Ended] = []
        self._known = self._read()
        self.look()

    def look(self) -> None:
        """Find what ended. Every window calls this each second, so it looks only so often."""
        with self._lock:
            if time.monotonic() - self._looked < _AT_MOST_EVERY:
                return
            self._looked = time.monotonic()
            now = {("run", run.name) for run in runs.running(self._home)}
            now |= {("job", found.name) for found in job.running(self._home)}
            before, self._known = self._known, now
            for kind, name in sorted(before - now):
                self._end(kind, name)
            del self._ended[:-_KEPT]
            if now != before:
                with suppress(DiskFailed, OSError):  # costs a word after the next start, nothing else
                    write_text(self._file, json.dumps(sorted(now), ensure_ascii=False))

    def since(self, number: int) -> list[Ended]:
        """What ended after the one with this number, the oldest first."""
        with self._lock:
            return [ended for ended in self._ended if ended.number > number]

    def _end(self, kind: str, name: str) -> None:
        ended = _run_ended(Run(self._home.runs / name)) if kind == "run" else _job_ended(Job(self._home.jobs / name))
        if ended is not None:
            self._number += 1
            self._ended.append(replace(ended, number=self._number))

    def _read(self) -> set[tuple[str, str]]:
        try:
            return {(str(kind), str(name)) for kind, name in read_json(self._file)}
        except (OSError, ValueError, TypeError):
            return set()


def _run_ended(run: Run) -> Ended | None:
    if not (run.folder / "run.json").exists():  # removed
        return None
    try:
        last, status = run.last_event(), run.status()
    except (OSError, ValueError, KeyError, TypeError):  # a damaged run: its page says so
        return None
    if status not in ("finished", "failed", "interrupted"):
        return None
    message = last.message if isinstance(last, events.Failed) else ""
    return Ended("run", run.name, status, message=message)


def _job_ended(found: Job) -> Ended | None:
    try:
        kind, state = found.kind, found.state()
    except (SpecError, OSError, ValueError, KeyError):  # forgotten, or damaged: its page says so
        return None
    if state.status not in ("done", "failed", "interrupted"):
        return None
    message = state.error["message"] if state.error else ""
    return Ended("job", found.name, "finished" if state.status == "done" else "failed", kind, message)


def build() -> Any:
    """The place for the notices, above the pages."""
    return parts.view(id="ended")


def wire(context: Context, view: Any) -> None:
    """Show what has ended, one at a time, and do what its buttons say."""
    import gradio as gr

    told_up_to: dict[str, int] = {}
    waiting: dict[str, list[Ended]] = {}

    def tick(window: Window) -> Any:
        context.endings.look()
        if not window.name:  # it has not attached yet
            return gr.skip()
        # What ended before there was a window is shown by the first one; a later window starts with what is new.
        since = told_up_to.setdefault(window.name, max(told_up_to.values(), default=0))
        for ended in context.endings.since(since):
            told_up_to[window.name] = ended.number
            if not _is_in_view(ended, window):
                waiting.setdefault(window.name, []).append(ended)
        return shown(window)

    def shown(window: Window) -> Any:
        found = waiting.get(window.name)
        html = _notice(context.t, found[-1]) if found else Html("")
        return html if window.changed("ended", html) else gr.skip()

    def press(window: Window, event: Any) -> Any:
        do, _, _ = parts.pressed(event)
        found = waiting.get(window.name)
        if not found:
            return shown(window), gr.skip()
        ended = found.pop()
        if do == "retry":
            _retry(context, ended)
        if do == "chat":
            window.shared.adapters = (ended.name,)
            return shown(window), context.go(window, "chat")
        if do in ("see", "retry"):
            window.shared.run = ended.name if ended.kind == "run" else window.shared.run
            return shown(window), context.go(window, ended.page)
        return shown(window), gr.skip()

    context.on_tick(None, tick, view)
    context.on(view.click, press, None, [view, context.nav])


def _is_in_view(ended: Ended, window: Window) -> bool:
    """Whether the window shows it already, so that no notice is needed."""
    if window.shared.page != ended.page:
        return False
    return ended.kind == "job" or window.shared.run == ended.name


def _notice(t: Strings, ended: Ended) -> Html:
    well = ended.outcome == "finished"
    buttons = [parts.button(t("ended.show"), "see", kind="small")]
    if well and ended.kind == "run":
        buttons.insert(0, parts.button(t("ended.chat"), "chat", kind="small primary"))
    if not well:
        buttons.append(parts.button(t("ended.resume" if ended.kind == "run" else "ended.retry"), "retry", kind="small"))
    return told(t, "good" if well else "bad", ended.title(t), ended.text(t), *buttons)


def _retry(context: Context, ended: Ended) -> None:
    """Resume a run, start a job again. Raises SpecError where it is gone, or running by now."""
    if ended.kind == "run":
        follow.start(runs.find(context.home, ended.name), context.home)
    else:
        job.again(job.find(context.home, ended.name), context.home)
