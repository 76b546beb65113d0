"""The base models of this machine, their fit in memory, and downloads. Lookups run in a thread: drives may be slow or missing.

The lists are empty until the first lookup returns. A page shows what is known and redraws when `version` increases.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from finetune_local.backend import Device
from finetune_local.gui.i18n.formats import Formats
from finetune_local.gui.i18n.strings import Strings, sentence
from finetune_local.gui.widgets import jobview, parts
from finetune_local.gui.widgets.html import Child, Html, h
from finetune_local.models.catalog import Entry, catalog, entry
from finetune_local.models.download import is_place
from finetune_local.models.folder import ModelFolder
from finetune_local.models.local import LocalModel, elsewhere, installed_models, model_folders
from finetune_local.models.memory.estimate import Fit, fits, fits_shape
from finetune_local.runtime.job import Job, JobState
from finetune_local.runtime.status import Status
from finetune_local.spec.run import DEFAULT_MODEL
from finetune_local.system.errors import ModelError
from finetune_local.system.paths import Home

UNKNOWN = Device("cpu", "cpu", "", 0)
"""Placeholder until the device is known: verdicts then use the machine's memory."""


@dataclass(frozen=True)
class Look:
    """The result of a lookup. `missing`: the user's model folders that do not exist. `fits`: verdicts by path and by catalogue name."""

    installed: tuple[LocalModel, ...] = ()
    elsewhere: tuple[LocalModel, ...] = ()
    missing: tuple[Path, ...] = ()
    fits: dict[str, tuple[Fit, ...]] = field(default_factory=dict)

    def find(self, use: str) -> LocalModel | None:
        """The found model with the name or path `use`; None if there is none."""
        everything = (*self.installed, *self.elsewhere)
        named = next((f for f in everything if use in (f.use, str(f.path))), None)
        return named or next((f for f in everything if use == f.source), None)

    def copy_of(self, entry: Entry) -> LocalModel | None:
        """The installed copy of a catalogue model; None if there is none."""
        words = {entry.name, entry.hub} - {""}
        return next((f for f in self.installed if {f.use, f.source} & words), None)


class BaseModels:
    """The models of one page. `device` returns the device that training would use, None while it is unknown."""

    def __init__(self, home: Home, device: Callable[[], Device | None]) -> None:
        self._home, self._device = home, device
        self.now = Look()
        self.version = 0
        """Grows whenever `now` changes."""
        self.looked = False
        """Whether all places were searched once."""
        self.looked_on: Device | None = None
        self._kept: dict[tuple[str, int, str, int], tuple[Fit, ...]] = {}
        self._wanted = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    @property
    def looking(self) -> bool:
        """Whether a lookup is in progress."""
        return self._thread is not None

    def device(self) -> Device:
        """The device, or UNKNOWN with the machine's memory."""
        found = self._device()
        if found is not None:
            return found
        return Device(UNKNOWN.id, UNKNOWN.kind, UNKNOWN.name, psutil.virtual_memory().total)

    def look(self) -> None:
        """Start a lookup in a thread; a request during a lookup starts another one after it."""
        with self._lock:
            self._wanted.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="models", daemon=True)
                self._thread.start()

    def refresh(self) -> None:
        """Search the home folder immediately, to see a model just added or removed, and everything else in the thread."""
        self._publish(Look(tuple(installed_models(self._home)), self.now.elsewhere, self.now.missing, self.now.fits))
        self.look()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._wanted.is_set():
                    self._thread = None
                    return
                self._wanted.clear()
            try:
                self._look()
            except Exception as error:  # noqa: BLE001 - a separate thread: the error goes to stderr
                traceback.print_exception(error)
            self.version += 1

    def _look(self) -> None:
        device = self.device()
        here = tuple(installed_models(self._home))
        self._publish(Look(here, self.now.elsewhere, self.now.missing, self.now.fits))
        there, missing = tuple(elsewhere()), tuple(place for place in model_folders() if not place.is_dir())
        self._publish(Look(here, there, missing, self.now.fits))
        self.looked = True
        fits = {} if device != self.looked_on else dict(self.now.fits)
        self.looked_on = device
        for name, found in self._fits((*here, *there), device):
            fits[name] = found
            self._publish(Look(here, there, missing, dict(fits)))

    def _publish(self, look: Look) -> None:
        self.now = look
        self.version += 1

    def _fits(self, models: Iterable[LocalModel], device: Device) -> Iterator[tuple[str, tuple[Fit, ...]]]:
        """Yield verdicts by path and by catalogue name, installed models first, each as soon as it is computed."""
        for model in models:
            if model.problem or model.kind != "folder":
                continue
            key = (str(model.path), model.bytes, device.kind, device.memory_bytes)
            if key not in self._kept:
                try:
                    self._kept[key] = fits(ModelFolder.open(model.path), device.kind, device.memory_bytes)
                except ModelError:  # removed in the meantime, or an architecture whose sizes cannot be read: no verdict
                    continue
            yield str(model.path), self._kept[key]
        for offer in catalog():
            yield offer.name, fits_shape(offer.shape, device.kind, device.memory_bytes)


def downloads(t: Strings, f: Formats, jobs: Sequence[Job]) -> Html:
    """The card of all downloads; empty HTML if there are none."""
    if not jobs:
        return Html("")
    rows = [h("li", _download(t, f, job), data_job=job.name) for job in jobs]
    return parts.card(h("ul", rows, class_="plain"), title=t("model.downloads"), class_="downloads", aria_live="off")


def what_of(job: Job) -> str:
    """What a job downloads: ORG/NAME, a path, or the default model's short name."""
    return str(job.arguments["what"])


def busy(jobs: Sequence[Job]) -> set[str]:
    """The models being downloaded, as what_of() names them."""
    return {what_of(job) for job in jobs if jobview.active(job.state())}


def _download(t: Strings, f: Formats, job: Job) -> Html:
    what, state = what_of(job), job.state()
    known = entry(what)
    name = known.name if known is not None else what
    working, paused = jobview.active(state), state.status is Status.PAUSED
    again = what == DEFAULT_MODEL or is_place(what)  # these cannot be resumed
    if working:
        pausing = job.stop_file.exists()
        badge = parts.badge(t("model.state_pausing" if pausing else "model.state_running"), "live")
        label = t("common.stop" if again else "model.pause")
        first = parts.button(label, "pause", job.name, kind="small", disabled=pausing)
    elif paused:
        badge = parts.badge(t("model.state_stopped" if again else "model.state_paused"), "warn")
        label = t("model.start_over" if again else "model.resume")
        first = parts.button(label, "resume", job.name, kind="small primary")
    else:
        badge = parts.badge(t("model.state_failed"), "bad")
        first = parts.button(t("model.retry"), "resume", job.name, kind="small primary")
    sure = t("model.cancel_sure", name=name)
    last = parts.button(t("model.cancel"), "cancel", job.name, kind="small quiet danger", confirm=sure)
    body: Child
    if working or paused:
        body = parts.progress(t, f, _so_far(t, f, state), state.done if state.text else None, _left(state))
        if paused and again and not is_place(what):
            body = [h("p", t("model.starts_over"), class_="soft")]
    else:
        message = state.error.message if state.error else ""
        body = h("p", sentence(t, message), class_="hint bad text", role="alert")
    return h("div", h("div", h("strong", name, class_="grow"), badge, first, last, class_="row"), body)


def _so_far(t: Strings, f: Formats, state: JobState) -> str:
    facts = state.facts
    if not facts.get("total"):
        return sentence(t, state.text) or t("model.beginning")
    text = t("model.so_far", here=f.size(facts["here"]), total=f.size(facts["total"]))
    if facts.get("rate") and state.status is Status.RUNNING:
        text += " · " + t("model.speed", speed=f.size(facts["rate"]))
    return text


def _left(state: JobState) -> float | None:
    return state.seconds_left if state.status is Status.RUNNING else None
