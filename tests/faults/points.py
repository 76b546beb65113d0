"""A process that imports everything once and then lets small runs fail at one call to the file system each, in forks of itself.

`python points.py FOLDER HOW:EVERY...` prints one JSON object a line: what was tried and, where something was lost, what. HOW is one
of Shim's, or the name of an error. With "-lasting" behind it, it is raised from that call on; with "-again", the run is hurt a second
time as it goes on. EVERY n tries each n-th call.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
sys.path.insert(0, str(Path(__file__).parents[1]))

from faults.shim import KILLED, Shim
from faults.toy_backend import ToyBackend
from finetune_local import backend as port
from finetune_local.spec.run import parse_spec
from finetune_local.system import checksums
from finetune_local.system.errors import DiskFailed, DiskFull
from finetune_local.system.paths import Home
from finetune_local.training import worker
from finetune_local.training.events import ENDS, Failed, Finished, Sample, Step, Validation
from finetune_local.training.run_folder import runs, tidy
from finetune_local.training.run_folder.runs import Run
from tiny import tiny_model

NAME = "run"
TIMES = ("seconds", "cpu_seconds", "peak_memory_bytes")
"""What may differ between two runs that are the same."""


def main(place: Path, wishes: Sequence[tuple[str, int]]) -> None:
    """Try the points and print."""
    port.backends = lambda: {"toy": ToyBackend()}
    whole = _prepared(place, "whole")
    _warm_up(place)
    assert _child(whole, place / "log") == 0, (place / "log").read_text("utf-8")
    wanted = outcome(whole)
    calls = _calls(place)
    for how, every in wishes:
        numbers = range(1 + len(how) % every, len(calls) + 1, every)
        lost: list[str] = []
        for number in numbers:
            lost += [f"{number} {calls[number - 1]}: {what}" for what in _lost(place, how, number, wanted)]
        sys.stdout.write(json.dumps({"how": how, "calls": len(calls), "tried": len(numbers), "lost": lost}) + "\n")
        sys.stdout.flush()


def _lost(place: Path, how: str, number: int, wanted: dict[str, Any]) -> Iterator[str]:
    """Let one run fail at one call, go on with it, and tell what is not as in the run that was let be."""
    run, log = _prepared(place, "hurt"), place / "log"
    log.unlink(missing_ok=True)
    kind, _, after = how.partition("-")
    again, lasting = after == "again", after == "lasting"
    shim = Shim(run.folder, number, str(getattr(errno, kind)) if hasattr(errno, kind) else kind if again else how)
    shim.lasting = lasting
    code = _child(run, log, shim)
    said = log.read_text("utf-8", "replace") if log.exists() else ""
    last = run.last_event()
    if "Traceback" in said or (isinstance(last, Failed) and not last.error):
        yield f"a traceback instead of a sentence: {said[-600:]}"
    if shim.how.isdecimal() and not shim.lasting:
        if code == KILLED or not isinstance(last, ENDS):
            yield f"no last event (exit code {code}): {said[-300:]}"
        elif isinstance(last, Failed) and last.error not in (DiskFailed.__name__, DiskFull.__name__):
            yield f"told as {last.error}: {last.message}"
    elif not shim.how.isdecimal() and code != KILLED:
        yield f"it was not killed (exit code {code})"
    if again and run.status() != "finished":
        _child(run, log, Shim(run.folder, 1 + number * 37 % 200, kind))
    for _ in range(3):
        if run.status() != "finished":
            code = _child(run, log)
    tidy.complete(run)
    found = outcome(run)
    for key, value in wanted.items():
        if found[key] != value:
            yield f"{key}: {_shown(found[key])} instead of {_shown(value)}"


def outcome(run: Run) -> dict[str, Any]:
    """All that a run leaves, but for times."""
    told = list(run.history())
    last = told[-1] if told else None
    summary = {k: v for k, v in last.summary.items() if k not in TIMES} if isinstance(last, Finished) else None
    report = run.folder / tidy.REPORT
    return {
        "status": run.status(),
        "steps": {e.step: e.loss for e in told if isinstance(e, Step)},
        "validation": {e.step: (e.loss, e.best) for e in told if isinstance(e, Validation)},
        "samples": {e.step: e.answer for e in told if isinstance(e, Sample)},
        "checkpoints told": sorted({e.step for e in told if e.kind == "checkpoint"}),
        "summary": summary and {k: v for k, v in summary.items() if k != "adapter"},
        "report": report.exists() and len(report.read_text("utf-8").splitlines()),
        "adapter": _digests(run.adapter),
        "checkpoints": _digests(run.checkpoints),
        "data": _digests(run.data),
        "left": sorted(path.name for path in run.folder.iterdir()),
        "untidy": tidy.untidy(run),
        "checksums": {
            folder.name: checksums.problem(folder)
            for folder in (run.data, run.adapter, *sorted(run.checkpoints.glob("step-*")))
        },
    }


def _digests(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != checksums.SUMS:
            content = path.read_bytes()
            if path.name in ("finetune_local.json", "state.json"):
                values = {k: v for k, v in json.loads(content).items() if k not in (*TIMES, "created")}
                content = json.dumps(values).encode()
            found[path.relative_to(folder).as_posix()] = hashlib.sha256(content).hexdigest()[:12]
    return found


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)[:300]


def _prepared(place: Path, name: str) -> Run:
    """A new run that nothing was done for yet: the same every time."""
    template, home = place / "template", place / name
    if not template.exists():
        rows = [{"prompt": f"say {i}", "completion": f"ok {i % 5}"} for i in range(20)]
        (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        settings = {"max_steps": 7, "batch_size": 4, "validate_every": 2, "checkpoint_every": 3, "sample_rows": 1,
                    "sample_tokens": 2, "learning_rate": 1e-2, "keep_checkpoints": 2}  # fmt: skip
        tables = {
            "name": NAME,
            "backend": "toy",
            "model": {"id": str(tiny_model(place / "model")), "precision": "fp32"},
            "data": {"files": [str(place / "rows.jsonl")], "validation": 0.2},
            "method": {"key": "lora", "rank": 2},
            "training": settings,
        }
        runs.create(Home(template), parse_spec(tables, "test"))
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(template, home)
    return Run(home / "runs" / NAME)


def _warm_up(place: Path) -> None:
    """Import all that a run imports, by a run in this process."""
    run = _prepared(place, "warm")
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    worker.main([str(run.folder), str(run.folder.parents[1])])
    for number, handler in before.items():
        signal.signal(number, handler)


def _calls(place: Path) -> list[str]:
    run, told = _prepared(place, "counted"), place / "calls.json"
    _child(run, place / "log", Shim(run.folder), told)
    return [str(call) for call in json.loads(told.read_text("utf-8"))]


def _child(run: Run, log: Path, shim: Shim | None = None, told: Path | None = None) -> int:
    """The worker of a run in a fork of this process; its exit code."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 70
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        if shim is not None:
            shim.install()
        code = worker.main([str(run.folder), str(run.folder.parents[1])])
        if shim is not None and told is not None:
            told.write_text(json.dumps(shim.calls), "utf-8")
    except BaseException:  # noqa: BLE001 - a fork must not go on as its parent
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    main(Path(sys.argv[1]), [(how, int(every)) for how, every in (given.split(":") for given in sys.argv[2:])])
