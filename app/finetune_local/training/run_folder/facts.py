"""Facts of runs, for lists and `--json`, from run.json and the last events: quick enough for a thousand runs."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
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

_NUMBERS = frozenset((
    "step", "steps", "max_steps", "first_loss", "last_loss", "validation_loss", "best_validation_loss", "trained_tokens", "supervised_tokens",
    "trainable_parameters", "seconds", "cpu_seconds", "peak_memory_bytes",
))  # fmt: skip
_TEXTS = frozenset(("backend", "device", "method", "model", "objective", "precision"))


@dataclass(frozen=True)
class RunFacts:
    """What lists show of a run; a field is None where it is not known.

    Losses are in nats. `steps` are those done by a run that has ended, and those to do (`max_steps`) of any other, whose `step` is
    the last one done. `changed_time` is in seconds since the epoch, `seconds` the time spent in training.
    """

    run: str
    status: Status
    folder: str
    changed: str
    changed_time: float
    killed: bool = False
    """The worker was killed."""
    damaged: bool = False
    """run.json cannot be read; `problem` says why."""
    problem: str | None = None
    method: str | None = None
    objective: str | None = None
    model: str | None = None
    backend: str | None = None
    device: str | None = None
    precision: str | None = None
    files: tuple[str, ...] = ()
    step: int | None = None
    steps: int | None = None
    max_steps: int | None = None
    first_loss: float | None = None
    last_loss: float | None = None
    validation_loss: float | None = None
    best_validation_loss: float | None = None
    trained_tokens: int | None = None
    trainable_parameters: int | None = None
    seconds: float | None = None
    peak_memory_bytes: int | None = None
    adapter: str | None = None
    """Its folder."""
    extras: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Values that `--json` prints beside the fields, among them those that only a later version knows."""
    order: tuple[str, ...] = field(default=(), repr=False)
    """The keys of `--json` in its order: names of fields and of extras."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> RunFacts:
        """The facts from the values of `--json`, with a Status as "status", and with "killed" and "damaged" where they are true."""
        known = {name: values[name] for name in _FIELDS & values.keys()}
        return cls(
            **{**known, "files": tuple(values.get("files", ()))},
            extras={name: value for name, value in values.items() if name not in _FIELDS},
            order=tuple(name for name in values if name not in ("killed", DAMAGED)),
        )

    @property
    def steps_done(self) -> int | None:
        """Steps that the run has done."""
        if self.step is not None:
            return self.step
        return self.steps if "first_loss" in self.order else None

    def as_json(self) -> dict[str, object]:
        """What `--json` prints; see Status for the words that differ."""
        word = DAMAGED if self.damaged else ProcessState(self.status, self.killed).as_json()
        values = {**vars(self), "status": word, "files": list(self.files), **self.extras}
        return {name: values[name] for name in self.order}


_FIELDS = frozenset(one.name for one in dataclasses.fields(RunFacts)) - {"extras", "order"}


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


class _Settings(BaseModel):
    """The part of run.json that lists show; the rest may be of any version."""

    method: _Keyed | str
    model: _Base
    backend: str
    training: _Steps
    data: _Files
    objective: _Objective | str = DEFAULT_OBJECTIVE

    @classmethod
    def read(cls, file: Path) -> _Settings:
        """Read the file. Raises OSError, ForeignTextError, ValidationError."""
        return cls.model_validate(read_json_object(file))

    def as_json(self) -> dict[str, object]:
        """These settings as `--json` prints them."""
        method = self.method if isinstance(self.method, str) else self.method.key
        objective = self.objective if isinstance(self.objective, str) else self.objective.key
        steps = self.training.max_steps
        return {"method": method, "objective": objective, "model": self.model.id, "backend": self.backend, "precision": self.model.precision,
                "steps": steps, "max_steps": steps, "files": list(self.data.files)}  # fmt: skip


def _valid(values: Mapping[str, Any]) -> dict[str, object]:
    """An event's values without those of a wrong type: a damaged line must not break the list."""
    own = frozenset(("status", "killed", DAMAGED, "folder", "changed", "changed_time", "files", "problem"))
    return {
        key: value
        for key, value in values.items()
        if key not in own
        and not (key in _NUMBERS and value is not None and not _is_number(value))
        and not (key in _TEXTS and not isinstance(value, str))
    }


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300  # NaN is not


def _place(error: ValidationError) -> str:
    return ".".join(str(part) for part in error.errors()[0]["loc"])


class Listing:
    """The facts of all runs, cached: only runs that have changed are read again."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._known: dict[Path, tuple[object, RunFacts]] = {}
        self._looked = -math.inf

    def all(self, patience: float = 0.0) -> list[RunFacts]:
        """The facts of every run, newest first, at most `patience` seconds old."""
        if time.monotonic() - self._looked < patience:
            return [facts for _, facts in self._known.values()]
        self._looked = time.monotonic()
        found: dict[Path, tuple[object, RunFacts]] = {}
        for run in runs.every(self._home):
            now, known = _stamp(run), self._known.get(run.folder)
            # A killed worker changes no file, so a running one is read again.
            same = known is not None and known[0] == now and known[1].status != Status.RUNNING
            found[run.folder] = known if same and known is not None else (now, facts_of(run))
        self._known = found
        return [facts for _, facts in found.values()]


def facts_of(run: Run) -> RunFacts:
    """The facts of one run."""
    return RunFacts.of(_facts(run))


def _facts(run: Run) -> Mapping[str, Any]:
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
        facts.update(_Settings.read(file).as_json())
    except (OSError, ForeignTextError, ValidationError) as error:
        reason = (
            msg("'{name}' is missing or invalid", name=_place(error))
            if isinstance(error, ValidationError)
            else message_of(error)
        )
        return {
            **facts,
            DAMAGED: True,
            "problem": msg("{file}: cannot be read ({error}). The run cannot be resumed.", file=file, error=reason),
        }
    if isinstance(summary := last.get("summary"), Mapping):
        facts.update(_valid(summary))
    else:
        facts |= _valid(_newest([last, *recent]))
    if "seconds" not in facts and working:
        pid = run.worker_pid()
        if pid is not None and (began := started_at(pid)) is not None:
            facts["seconds"] = time.time() - began
    facts["run"] = run.name  # the summary of a renamed run has the old name and folder
    facts.pop("adapter", None)
    if last.get("event") == "failed":
        facts["problem"] = str(last.get("message", ""))
    if run.adapter.exists():
        facts["adapter"] = str(run.adapter)
    return facts


def all_facts(home: Home) -> list[RunFacts]:
    """The facts of every run, newest first."""
    return Listing(home).all()


def _newest(recent: Iterable[Mapping[str, Any]]) -> dict[str, object]:
    """Step and losses of a run without a summary, from its newest events."""
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
