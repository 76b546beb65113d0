"""The one place in which these tests name the app's modules: what trains here, in this process, as the worker does."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / part) for part in ("app", "backends", "tests") if str(ROOT / part) not in sys.path]

Json = dict[str, Any]


def usable_backends() -> list[str]:
    """Names of the backends that this machine can train with."""
    from finetune_local.backend import backends

    return [name for name, backend in backends().items() if backend.missing() is None]


def method_keys() -> list[str]:
    """Every method of the app."""
    from finetune_local.spec.tuners import presets

    return list(presets())


def make_runs(home: Path, specs: Sequence[Mapping[str, Any]]) -> list[Path]:
    """New run folders from tables as a run.toml has them, checked together as `train` checks them."""
    from finetune_local.spec.run import parse_spec
    from finetune_local.system.paths import Home
    from finetune_local.training.run_folder import follow

    parsed = [parse_spec(tables, "tests/compat") for tables in specs]
    return [run.folder for run, _ in follow.create_checked(parsed, Home(home), lambda *_: None)]


def train(home: Path, folders: Sequence[Path], stop_after: int | None = None) -> list[list[Json]]:
    """Train runs from where they stand, several at once on one base; what each told from here on, as in events.jsonl.

    `stop_after`: ask every run to stop once it has done this many steps.
    """
    from finetune_local.system.paths import Home
    from finetune_local.training import multi_adapter
    from finetune_local.training.loop import Loop
    from finetune_local.training.run_folder.runs import Run
    from finetune_local.training.setup import Ready, make_ready

    loops: list[Loop] = []
    told: list[list[Json]] = []
    for folder in folders:
        run, items = Run(folder), []
        for item in make_ready(run, Home(home), loops[0].ready if loops else None):
            items.append(item)
            if not isinstance(item, Ready):
                run.append(item)
        ready = items.pop()
        loops.append(Loop(ready, _stops(ready, stop_after)))
        told.append([event.as_json() for event in items])
    every = (
        multi_adapter.events_of_all(loops)
        if len(loops) > 1
        else ((loops[0], event) for event in multi_adapter.events(loops[0]))
    )
    for loop, event in every:
        loop.ready.run.append(event)
        told[loops.index(loop)].append(event.as_json())
    return told


def _stops(ready: Any, after: int | None) -> Callable[[], bool]:
    return lambda: after is not None and ready.state.step >= after


def run_job(home: Path, kind: str, arguments: Mapping[str, Any], end: str = "") -> Path:
    """A job in a process of its own, to its end; `end`: "stop" asks it to stop at once, "kill" kills its process. Its folder."""
    from finetune_local.runtime import jobs
    from finetune_local.runtime.kinds import kind_of
    from finetune_local.system.paths import Home

    begun = jobs.start(Home(home), kind_of(kind), arguments)
    if end == "stop":
        begun.ask_to_stop()
    elif end == "kill":
        begun.kill()
    begun.wait_for_exit(300)
    return begun.folder


def job_states(home: Path) -> list[Json]:
    """Every job as lists show it, the oldest first; a status in the words that the first home was described with."""
    from finetune_local.runtime import jobs
    from finetune_local.system.paths import Home

    found = []
    for one in reversed(jobs.every(Home(home))):
        state = one.state()
        result, error = state.result and dict(state.result), state.error
        status = "done" if state.status == "finished" else state.as_json()
        found.append({"name": one.name, "kind": one.kind.key, "status": status, "text": state.text, "result": result})
        told = error and {"error": error.error, "message": error.message}
        found[-1] |= {"notes": list(state.notes), "error": told}
    return found


def vote(home: Path, evaluation: str, against: str, sides: Sequence[str]) -> None:
    """Vote on the pairs of an evaluation in their order; "undo" takes the last vote back."""
    from finetune_local.evaluation import store
    from finetune_local.evaluation.votes import Ballot
    from finetune_local.system.paths import Home

    ballot: Any = Ballot(store.find(Home(home), evaluation), against)  # type: ignore[arg-type]
    for side in sides:
        if side == "undo":
            ballot.undo()
        elif waiting := ballot.waiting():
            ballot.vote(waiting[0], side)


def evaluations(home: Path) -> list[Json]:
    """Every evaluation as its page shows it, with what was voted."""
    from dataclasses import asdict

    from finetune_local.evaluation import store
    from finetune_local.evaluation.votes import Ballot
    from finetune_local.system.paths import Home

    found = []
    for one in store.every(Home(home)):
        sides = [name for name in ("base", "few_shot") if {name, "tuned"} <= set(one.conditions())]
        tallies = {name: asdict(Ballot(one, name).tally()) for name in sides}  # type: ignore[arg-type]
        found.append(
            {
                "name": one.name,
                "problem": one.problem,
                "result": one.result,
                "rows": [_row(row) for row in one.rows],
                "votes": tallies,
            }
        )
    return found


def _row(row: Any) -> Json:
    """A row of an evaluation as it stands in rows.jsonl."""
    answers = {name: {"answer": answer.text, **answer.values} for name, answer in row.answers.items()}
    prompt = [{"role": role, "content": text} for role, text in row.prompt]
    return {"file": row.file, "line": row.line, "prompt": prompt, "reference": row.reference, **answers}


def kill_after_checkpoint(home: Path, folder: Path) -> None:
    """Train a run in a process of its own and kill that when the first checkpoint is on the disk."""
    from finetune_local.system.errors import FinetuneError
    from finetune_local.system.paths import Home
    from finetune_local.training.run_folder import follow
    from finetune_local.training.run_folder.runs import Run

    run = Run(folder)
    try:
        for event in follow.follow(run, follow.start(run, Home(home))):
            if event.kind == "checkpoint":
                run.kill()
    except FinetuneError:
        run.wait_until_gone()


def command_line(*arguments: str, text: str = "") -> tuple[int, str]:
    """The exit code of `finetune-local`, run here, and what it prints to its standard output."""
    from finetune_local.cli import main

    out, given = io.StringIO(), sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(text.encode()), "utf-8")
    try:
        with redirect_stdout(out), redirect_stderr(io.StringIO()):
            main.main(arguments)
    except SystemExit as end:
        return int(end.code or 0), out.getvalue()
    finally:
        sys.stdin = given
    raise AssertionError("the command line did not exit")


def printed(*arguments: str, text: str = "", code: int = 0) -> Any:
    """The last line that a verb prints with --json."""
    ended, out = command_line(*arguments, "--json", text=text)
    assert ended == code, f"{arguments}: exit code {ended}\n{out}"
    return json.loads(out.splitlines()[-1])


def throw_chat_and_evaluation(home: Path) -> None:
    """Move the newest conversation and the newest evaluation to the trash."""
    from finetune_local.chat import conversations
    from finetune_local.evaluation import store
    from finetune_local.system.paths import Home

    place = Home(home)
    conversations.remove(place, conversations.listed(place)[0].id)
    store.throw_away(place, store.every(place)[0].name)


def trash_items(home: Path) -> list[Json]:
    """What lies in the trash, by kind and name."""
    from finetune_local.system import trash
    from finetune_local.system.paths import Home

    found = [{"kind": one.kind, "name": one.name} for one in trash.every(Home(home))]
    return sorted(found, key=lambda one: (one["kind"], one["name"]))


def put_all_back(home: Path) -> list[str]:
    """Take everything in the trash back, the newest first; the kinds that there were."""
    from finetune_local.adapters import manage
    from finetune_local.chat import conversations
    from finetune_local.evaluation import store
    from finetune_local.system import trash
    from finetune_local.system.paths import Home
    from finetune_local.training.run_folder import runs

    place, kinds = Home(home), []
    for one in trash.every(place):
        kinds.append(one.kind)
        match one.kind:
            case "run":
                runs.put_back(one)
            case "adapter":
                manage.put_back(one, place)
            case "evaluation":
                store.put_back(one, place)
            case _:
                conversations.restore(place, one.key)
    return kinds


def conversation_texts(home: Path) -> list[list[list[str]]]:
    """What was said in each conversation, as the model reads it, by who said it."""
    from finetune_local.chat import history
    from finetune_local.system.paths import Home

    return [
        [[turn.role, turn.content] for turn in one.read().turns]
        for one in sorted(history.every(Home(home)), key=lambda one: one.id)
    ]


def save_draft(home: Path, name: str, values: Mapping[str, Any]) -> None:
    """Let a window remember these values."""
    from finetune_local.gui.shell.windows import Windows
    from finetune_local.system.paths import Home

    windows = Windows(Home(home))
    windows.attach("session", name).set(**values)
    windows.close()


def read_draft(home: Path, name: str) -> Json:
    """What the window of this name remembers, after it was opened and has written it again."""
    from finetune_local.gui.shell.windows import Windows
    from finetune_local.system.paths import Home

    windows = Windows(Home(home))
    windows.attach("session", name)
    windows.close()
    kept = json.loads((home / "window" / "drafts" / f"{name}.json").read_text("utf-8"))
    kept.pop("sha256")
    return dict(kept)


def save_preferences(**changed: Any) -> None:
    """Prefer these."""
    from finetune_local.system import preferences

    preferences.save(**changed)


def preferences() -> Json:
    """What is preferred."""
    from finetune_local.system import preferences

    return preferences.load().model_dump(mode="json")
