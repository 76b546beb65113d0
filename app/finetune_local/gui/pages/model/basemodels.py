"""The base models of this machine, and which of them fit: looked up in a thread, as drives may be slow or gone.

The lists are empty until the first lookup returns. A page shows what is known and is drawn again when `version` grows.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from finetune_local.backend import Device
from finetune_local.models.catalog import Entry, catalog
from finetune_local.models.folder import ModelFolder
from finetune_local.models.local import LocalModel, elsewhere, installed_models, model_folders
from finetune_local.models.memory.estimate import Fit, fits, fits_shape
from finetune_local.system.errors import ModelError
from finetune_local.system.paths import Home

UNKNOWN = Device("cpu", "cpu", "", 0)
"""Stands for the device while it is unknown: only the machine's memory counts."""


@dataclass(frozen=True)
class Look:
    """What a lookup found. `missing` are the user's folders that do not exist, `fits` verdicts by path and by catalogue name."""

    installed: tuple[LocalModel, ...] = ()
    elsewhere: tuple[LocalModel, ...] = ()
    missing: tuple[Path, ...] = ()
    fits: dict[str, tuple[Fit, ...]] = field(default_factory=dict)

    def find(self, use: str) -> LocalModel | None:
        """The model that `use` names, if it was found."""
        everything = (*self.installed, *self.elsewhere)
        named = next((f for f in everything if use in (f.use, str(f.path))), None)
        return named or next((f for f in everything if use == f.source), None)

    def copy_of(self, entry: Entry) -> LocalModel | None:
        """What is installed of a model of the catalogue."""
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
        """Search again, in a thread; a request that comes meanwhile is served after it."""
        with self._lock:
            self._wanted.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="models", daemon=True)
                self._thread.start()

    def refresh(self) -> None:
        """Search the home folder at once, for what was just added or removed, and everything else in the thread."""
        self._tell(Look(tuple(installed_models(self._home)), self.now.elsewhere, self.now.missing, self.now.fits))
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
        self._tell(Look(here, self.now.elsewhere, self.now.missing, self.now.fits))
        there, missing = tuple(elsewhere()), tuple(place for place in model_folders() if not place.is_dir())
        self._tell(Look(here, there, missing, self.now.fits))
        self.looked = True
        told = {} if device != self.looked_on else dict(self.now.fits)
        self.looked_on = device
        for name, found in self._fits((*here, *there), device):
            told[name] = found
            self._tell(Look(here, there, missing, dict(told)))

    def _tell(self, look: Look) -> None:
        self.now = look
        self.version += 1

    def _fits(self, models: Iterable[LocalModel], device: Device) -> Iterator[tuple[str, tuple[Fit, ...]]]:
        """Verdicts by path and by catalogue name, installed models first, each as soon as it is known."""
        for model in models:
            if model.problem or model.kind != "folder":
                continue
            key = (str(model.path), model.bytes, device.kind, device.memory_bytes)
            if key not in self._kept:
                try:
                    self._kept[key] = fits(ModelFolder.open(model.path), device.kind, device.memory_bytes)
                except ModelError:  # removed meanwhile, or of an architecture whose sizes cannot be read: no verdict
                    continue
            yield str(model.path), self._kept[key]
        for entry in catalog():
            yield entry.name, fits_shape(entry.shape, device.kind, device.memory_bytes)
