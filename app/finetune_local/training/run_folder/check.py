"""`runs check`: find damaged files of a run and repair what can be repaired.

Nothing is deleted: a damaged checkpoint is moved to the folder `damaged`, and an adapter is rewritten from its checkpoint. Damaged
rows are prepared again when the run is resumed, which needs its tokenizer.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from finetune_local.adapter_format import CONFIG, WEIGHTS, read_adapter
from finetune_local.adapters.identity import FILE as IDENTITY
from finetune_local.runtime.status import ProcessState
from finetune_local.system import checksums
from finetune_local.system.errors import AdapterError, DamagedRun, DiskFailed, SpecError, UserError
from finetune_local.system.messages import Message, message_of, msg, without_full_stop
from finetune_local.system.untrusted.text import ForeignTextError, parse_json_object
from finetune_local.training.checkpoints import checkpoint
from finetune_local.training.checkpoints.checkpoint import publish_checkpoint
from finetune_local.training.events import Finished, StoppedByUser
from finetune_local.training.run_folder.runs import Run
from finetune_local.training.run_folder.tidy import complete, untidy

Kind = Literal["damaged", "newer", "untidy"]


@dataclass(frozen=True)
class Finding:
    """A problem of a run. `place` is relative to the run folder; `remedy` says what was done about it or can be done."""

    place: str
    kind: Kind
    problem: str
    remedy: str
    repaired: bool = False


@dataclass
class Checked:
    """The result for one run. `checkpoints` names the intact ones; `summed` is how many of them were compared with checksums."""

    run: str
    state: ProcessState | None
    """None for a run that cannot be read."""
    findings: list[Finding] = field(default_factory=list)
    checkpoints: list[str] = field(default_factory=list)
    summed: int = 0

    @property
    def intact(self) -> bool:
        """Whether nothing is wrong, or everything was repaired."""
        return all(finding.repaired for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """A plain object for --json."""
        status = "damaged" if self.state is None else self.state.as_json()
        values = {key: value for key, value in asdict(self).items() if key not in ("run", "state")}
        return {"run": self.run, "status": status, **values, "intact": self.intact}


def check_each(runs: Iterable[Run], *, repair: bool = False) -> list[Checked]:
    """Check several runs. One that cannot be read is reported as a finding and does not stop the others."""
    found = []
    for run in runs:
        try:
            found.append(check(run, repair=repair))
        except (DiskFailed, UserError) as error:
            finding = Finding(".", "damaged", without_full_stop(error.message), msg("fix that and check again"))
            found.append(Checked(run.name, None, [finding]))
    return found


def check(run: Run, *, repair: bool = False) -> Checked:
    """Check a run and, with `repair`, repair what can be repaired. A run in training is not checked. Raises DiskFailed."""
    found = Checked(run.name, run.process_state())
    if run.alive():
        return found
    if not repair:
        found.findings += _findings(run, found, repair=False)
        return found
    with run.locked() as mine:
        if mine:
            found.findings += _findings(run, found, repair=True)
    if mine:
        found.findings += [
            Finding(name, "untidy", msg("it was left unfinished when the process was killed"), "done", repaired=True)
            for name in complete(run)
        ]
    return found


def _findings(run: Run, found: Checked, *, repair: bool) -> Iterator[Finding]:
    yield from _settings(run)
    yield from _events(run, repair=repair)
    yield from _rows(run)
    # Before the checkpoints, which may be moved: the weights of a damaged one may still be intact.
    yield from _adapter(run, repair=repair)
    yield from _checkpoints(run, found, repair=repair)
    if not repair:
        for name in untidy(run):
            yield Finding(
                name, "untidy", msg("it was left unfinished when the process was killed"), msg("--repair does it")
            )


def _settings(run: Run) -> Iterator[Finding]:
    try:
        _ = run.spec
    except DamagedRun as error:
        yield Finding("run.json", "newer", message_of(error), "update")
    except (SpecError, UserError) as error:
        yield Finding(
            "run.json", "damaged", message_of(error), msg("its checkpoints and its adapter can still be used")
        )


def _events(run: Run, *, repair: bool) -> Iterator[Finding]:
    if not run.events_file.exists():
        return
    whole = run.events_end()
    if half := run.events_file.stat().st_size - whole:
        if repair:
            os.truncate(run.events_file, whole)
        remedy = msg("cut off") if repair else msg("--repair cuts it off")
        yield Finding(
            "events.jsonl", "untidy", msg("its last line is incomplete ({bytes} bytes)", bytes=half), remedy, repair
        )
    with run.events_file.open("rb") as file:
        bad = sum(1 for line in file if line.endswith(b"\n") and not _readable(line))
    if bad:
        yield Finding(
            "events.jsonl",
            "damaged",
            msg("{number} of its lines cannot be read", number=bad),
            msg("they are skipped; training is not affected"),
        )


def _checkpoints(run: Run, found: Checked, *, repair: bool) -> Iterator[Finding]:
    bad: list[tuple[Path, DamagedRun]] = []
    for place in checkpoint.every(run.checkpoints):
        try:
            _whole(place)
        except DamagedRun as error:
            bad.append((place, error))
        else:
            found.checkpoints.append(place.name)
            found.summed += (place / checksums.SUMS).exists()
    for place, why in bad:
        kind: Kind = "newer" if isinstance(why, checkpoint.NewerCheckpoint) else "damaged"
        if not found.checkpoints:
            remedy, done = msg("no other checkpoint is intact, so it stays in place"), False
        elif repair:
            remedy, done = msg("moved to {place}", place=checkpoint.move_to_damaged(place, run.folder)), True
        else:
            remedy, done = (
                msg("--repair moves it away; the run continues from {name}", name=found.checkpoints[-1]),
                False,
            )
        yield Finding(f"checkpoints/{place.name}", kind, str(why), remedy, done)


def _whole(place: Path) -> None:
    """Raise DamagedRun for a checkpoint that cannot be used. One without checksums has to be loaded to find out."""
    checkpoint.examine(place)
    if not (place / checksums.SUMS).exists():
        checkpoint.load(place)


def _rows(run: Run) -> Iterator[Finding]:
    for folder in (run.data, run.tokenizer):
        if folder.is_dir() and (problem := checksums.problem(folder)):
            yield Finding(
                folder.name,
                "damaged",
                problem,
                msg("`resume` rebuilds it from its files if they are unchanged"),
            )


def _adapter(run: Run, *, repair: bool) -> Iterator[Finding]:
    if not run.adapter.exists():
        return
    if (run.adapter / checksums.SUMS).exists():
        problem = checksums.problem(run.adapter, (CONFIG, WEIGHTS))
    else:
        problem = _unreadable(run.adapter)
    if problem is None:
        return
    source = _source(run)
    if source is None:
        yield Finding(
            "adapter",
            "damaged",
            problem,
            msg("the checkpoint it was made from is missing, so it cannot be rebuilt"),
        )
    elif repair:
        publish_checkpoint(run, source, summed=True)
        yield Finding("adapter", "damaged", problem, msg("rebuilt from {name}", name=source.name), repaired=True)
    else:
        yield Finding("adapter", "damaged", problem, msg("--repair rebuilds it from {name}", name=source.name))


def _source(run: Run) -> Path | None:
    """The checkpoint that the adapter was made from, the last or the best; None if its weights are not intact."""
    last = run.last_event()
    if not isinstance(last, (Finished, StoppedByUser)):
        return None
    step = last.summary.get("steps")
    try:
        early = run.spec.training.early_stopping
    except UserError:
        early = None
    state = checkpoint.counters(run.checkpoints)
    if early and state.step == step and state.best_step and isinstance(last, Finished):
        step = state.best_step
    source = run.checkpoints / f"step-{step:06d}" if isinstance(step, int) else run.checkpoints
    return source if _has_weights(source) else None


def _has_weights(place: Path) -> bool:
    """Whether a checkpoint's adapter is intact, even if its other files are not."""
    needed = (CONFIG, WEIGHTS, IDENTITY)
    try:
        known = checksums.read(place)
        if known is None:
            _whole(place)
            return True
    except (ForeignTextError, DamagedRun):
        return False
    there = all(name in known and (place / name).is_file() for name in needed)
    return there and checksums.changed(place, {name: known[name] for name in needed}) is None


def _unreadable(folder: Path) -> Message | None:
    try:
        read_adapter(folder)
    except AdapterError as error:
        return message_of(error)
    return None


def _readable(line: bytes) -> bool:
    try:
        parse_json_object(line)
    except ForeignTextError:
        return False
    return True
