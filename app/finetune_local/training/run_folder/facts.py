"""What lists of runs show: one plain object a run, from its run.json and its last events, quick enough for a thousand runs."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from finetune_local.runtime.status import ProcessState, Status
from finetune_local.spec.run import DEFAULT_OBJECTIVE
from finetune_local.system.files import stamp
from finetune_local.system.messages import message_of, msg
from finetune_local.system.paths import Home
from finetune_local.system.process import started_at
from finetune_local.system.untrusted.text import ForeignTextError, read_json_object
from finetune_local.training.run_folder import runs
from finetune_local.training.run_folder.runs import Run

DAMAGED = "damaged"
"""A mark beside the status: run.json cannot be read. `--json` prints it in place of the status."""


class _Keyed(BaseModel):
    key: str


class _Base(BaseModel):
    id: str
    precision: str | None


class _Files(BaseModel):
    files: tuple[str, ...]


class _Steps(BaseModel):
    max_steps: Annotated[int, Field(ge=0, le=10**12)] | None


class _Objective(BaseModel):
    key: str = DEFAULT_OBJECTIVE


class _Told(BaseModel):
    """What lists show of a run.json; the rest may be of any version."""

    method: _Keyed | str
    model: _Base
    backend: str
    training: _Steps
    data: _Files
    objective: _Objective | str = DEFAULT_OBJECTIVE

    @classmethod
    def read(cls, file: Path) -> _Told:
        """From the file. Raises OSError, ForeignTextError, ValidationError."""
        return cls.model_validate(read_json_object(file))

    def facts(self) -> dict[str, Any]:
        """As facts_of() has them."""
        method = self.method if isinstance(self.method, str) else self.method.key
        objective = self.objective if isinstance(self.objective, str) else self.objective.key
        steps = self.training.max_steps
        return {"method": method, "objective": objective, "model": self.model.id, "backend": self.backend, "precision": self.model.precision,
                "steps": steps, "max_steps": steps, "files": list(self.data.files)}  # fmt: skip


_NUMBERS = frozenset((
    "step", "steps", "first_loss", "last_loss", "validation_loss", "best_validation_loss", "trained_tokens", "supervised_tokens",
    "trainable_parameters", "seconds", "cpu_seconds", "peak_memory_bytes",
))  # fmt: skip
_TEXTS = frozenset(("backend", "device", "method", "model", "precision"))


def _sound(told: Mapping[str, Any]) -> dict[str, object]:
    """What an event tells, without values that are not of their kind: a damaged line must not take the list with it."""
    own = frozenset(("status", "killed", "folder", "changed", "changed_time", "files"))
    return {
        key: value
        for key, value in told.items()
        if key not in own
        and not (key in _NUMBERS and value is not None and not _is_number(value))
        and not (key in _TEXTS and not isinstance(value, str))
    }


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300  # NaN is not


def _place(error: ValidationError) -> str:
    return ".".join(str(part) for part in error.errors()[0]["loc"])


class Listing:
    """The facts of all runs, kept in memory: of a thousand only those that have changed are read again."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._known: dict[Path, tuple[object, dict[str, Any]]] = {}
        self._looked = -math.inf

    def all(self, patience: float = 0.0) -> list[dict[str, Any]]:
        """Of every run, the newest first; as they were at most `patience` seconds ago."""
        if time.monotonic() - self._looked < patience:
            return [facts for _, facts in self._known.values()]
        self._looked = time.monotonic()
        found: dict[Path, tuple[object, dict[str, Any]]] = {}
        for run in runs.every(self._home):
            now, known = _stamp(run), self._known.get(run.folder)
            # That a worker was killed changes no file.
            same = known is not None and known[0] == now and known[1]["status"] != Status.RUNNING
            found[run.folder] = known if same and known is not None else (now, facts_of(run))
        self._known = found
        return [facts for _, facts in found.values()]


def facts_of(run: Run) -> dict[str, Any]:
    """Name, status, method, model, data, losses, dates; a damaged run is listed as such, with what is wrong.

    "status" is a Status; DAMAGED is True where run.json cannot be read, and "killed" is there where the worker was killed. "steps" are those done by a run that has ended,
    and those to do ("max_steps") of any other, whose "step" is the last one done.
    """
    file = run.folder / "run.json"
    changed = _changed(file)
    recent = run.newest()
    last = next(recent, {})
    working = run.alive()
    state = run.state_after(last or None, alive=working, claimed=run.worker_file.exists())
    facts: dict[str, Any] = {
        "run": run.name,
        "status": state.status,
        "folder": str(run.folder),
        "changed": _date(changed),
        "changed_time": changed,
        **({"killed": True} if state.killed else {}),
    }
    try:
        facts.update(_Told.read(file).facts())
    except (OSError, ForeignTextError, ValidationError) as error:
        said = (
            msg("'{name}' is missing or invalid", name=_place(error))
            if isinstance(error, ValidationError)
            else message_of(error)
        )
        return {
            **facts,
            DAMAGED: True,
            "problem": msg("{file}: cannot be read ({error}). The run cannot be resumed.", file=file, error=said),
        }
    if isinstance(summary := last.get("summary"), Mapping):
        facts.update(_sound(summary))
    else:
        facts |= _sound(_newest([last, *recent]))
    if "seconds" not in facts and working:
        pid = run.worker_pid()
        if pid is not None and (began := started_at(pid)) is not None:
            facts["seconds"] = time.time() - began
    facts["run"] = run.name  # the summary of a run that was renamed since has another name and place
    facts.pop("adapter", None)
    if last.get("event") == "failed":
        facts["problem"] = str(last.get("message", ""))
    if run.adapter.exists():
        facts["adapter"] = str(run.adapter)
    return facts


def facts_as_json(facts: Mapping[str, Any]) -> dict[str, object]:
    """A run's facts as `--json` prints them; see Status for the words that differ."""
    state = ProcessState(Status(facts["status"]), bool(facts.get("killed")))
    word = DAMAGED if facts.get(DAMAGED) else state.as_json()
    return {key: value for key, value in {**facts, "status": word}.items() if key not in ("killed", DAMAGED)}


def all_facts(home: Home) -> list[dict[str, Any]]:
    """Of every run, the newest first."""
    return Listing(home).all()


def _newest(recent: Iterable[Mapping[str, Any]]) -> dict[str, object]:
    """Step and losses of a run that has said no summary, as far as its newest events tell."""
    found: dict[str, Any] = {}
    for line in recent:
        kind = line.get("event")
        if kind in ("started", "step", "checkpoint", "validation", "sample"):
            found.setdefault("step", line.get("step"))
        if kind == "step":
            found.setdefault("last_loss", line.get("loss"))
        elif kind == "validation":
            found.setdefault("validation_loss", line.get("loss"))
    return found


def _stamp(run: Run) -> object:
    return stamp(run.folder, "run.json", "events.jsonl", "worker.json", "adapter")


def _date(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):  # a file of the year 30,000
        return "?"


def _changed(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:  # removed a moment ago
        return 0.0
