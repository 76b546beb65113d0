"""What else writes in a home, hurt at each of its calls to the file system: an import, a new run, a new name, the trash, a chat.

`python writers.py FOLDER HOW...` prints one JSON object a line. Afterwards all that was there is there, under its old name or its new
one, lists are read without an error, and doing the same again does it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import traceback
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from faults.shim import Shim
from finetune_local.adapter_format import read_adapter, write_adapter
from finetune_local.adapters import library, manage
from finetune_local.chat import history
from finetune_local.spec.low_rank.settings import LowRankSettings
from finetune_local.spec.plan import AdapterPlan, Target
from finetune_local.spec.run import parse_spec
from finetune_local.system import trash
from finetune_local.system.errors import FinetuneError
from finetune_local.system.paths import Home
from finetune_local.training.run_folder import facts, runs

PLAN = AdapterPlan("lora", "low_rank", LowRankSettings(rank=2), (Target("model.layers.0.mlp.up_proj", 4, 6),))


@dataclass(frozen=True)
class Writer:
    """`act` is hurt; `there` raises AssertionError where something of the home is lost; `done` tells whether it was done."""

    act: Callable[[Home, Path], None]
    done: Callable[[Home], bool]


def _import(kind: str) -> Writer:
    return Writer(
        lambda home, place: str(manage.bring_in(place / kind, home, "new")) and None,
        lambda home: "new" in {entry.name for entry in library.entries(home)},
    )


def _create(home: Home, _place: Path) -> None:
    runs.create(home, _spec("another"))


def _say(home: Home, _place: Path) -> None:
    history.find(home, "talk").append({"role": "user", "content": "more"})


WRITERS = {
    "import of a folder": _import("folder"),
    "import of a zip": _import("packed.zip"),
    "a new run": Writer(_create, lambda home: (home.runs / "another" / "asked.json").exists()),
    "a new name": Writer(
        lambda home, _: runs.rename(runs.find(home, "one"), "two", home) and None, lambda home: _named(home, "two")
    ),
    "removal": Writer(
        lambda home, _: runs.remove(runs.find(home, "one"), home) and None, lambda home: bool(trash.every(home))
    ),
}


def main(place: Path, hows: Sequence[str]) -> None:
    """Try all and print."""
    _make(place)
    for how in hows:
        for name, writer in WRITERS.items():
            lost, number = list[str](), 0
            while True:
                number += 1
                home = _home(place)
                code = _child(home, writer, place, Shim(home.root, number, how))
                if code == 0 and number > _calls(place):
                    break
                lost += [f"{number}: {what}" for what in _lost(home, writer, place, code)]
            sys.stdout.write(json.dumps({"how": how, "what": name, "tried": number - 1, "lost": lost}) + "\n")
            sys.stdout.flush()


def _lost(home: Home, writer: Writer, place: Path, code: int) -> list[str]:
    found = []
    if code == 70:
        found.append("a traceback: " + (place / "log").read_text("utf-8")[-500:])
    try:
        _look(home)
        if not writer.done(home):
            writer.act(home, place)
            assert writer.done(home), "it cannot be done again"
        _look(home)
    except Exception:  # noqa: BLE001 - whatever it is, it is what was lost
        found.append(traceback.format_exc()[-700:])
    return found


def _look(home: Home) -> None:
    """Everything that was there can be found and read."""
    listed = {row.run: row for row in facts.all_facts(home)}
    removed = {one.name: one.content for one in trash.every(home)}
    kept = [home.runs / name for name in ("one", "two") if name in listed] + [
        removed[n] for n in ("one",) if n in removed
    ]
    assert len(kept) == 1, f"the run is in {kept} (listed: {sorted(listed)}, in the trash: {sorted(removed)})"
    assert json.loads((kept[0] / "run.json").read_text("utf-8"))["training"]["seed"] == 7
    read_adapter(kept[0] / "adapter")
    for entry in library.entries(home):
        read_adapter(entry.folder)
        assert entry.listed().problem is None


def _named(home: Home, name: str) -> bool:
    return name in {run.name for run in runs.every(home)} and runs.find(home, name).spec.name == name


def _spec(name: str) -> object:
    return parse_spec({"name": name, "data": {"files": ["/x/d.jsonl"]}, "training": {"seed": 7}}, "test")


def _make(place: Path) -> None:
    tensors = {
        f"base_model.model.model.layers.0.mlp.up_proj.lora_{name}.weight": np.ones(shape, np.float32)
        for name, shape in (("A", (2, 4)), ("B", (6, 2)))
    }
    write_adapter(place / "folder", PLAN, tensors, "base")
    with zipfile.ZipFile(place / "packed.zip", "w") as packed:
        for file in (place / "folder").iterdir():
            packed.write(file, f"x/{file.name}")
    home = Home(place / "template")
    write_adapter(runs.create(home, _spec("one")).adapter, PLAN, tensors, "base")  # type: ignore[arg-type]
    _ = home.adapters, home.trash


def _home(place: Path) -> Home:
    shutil.rmtree(place / "home", ignore_errors=True)
    shutil.copytree(place / "template", place / "home")
    return Home(place / "home")


def _calls(place: Path) -> int:
    return int((place / "calls").read_text("ascii") or 0)


def _child(home: Home, writer: Writer, place: Path, shim: Shim) -> int:
    """Act in a fork: 0 done, 1 refused in a sentence, 70 a traceback, 137 killed."""
    (place / "calls").write_text(str(10**6), "ascii")
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 70
    try:
        out = os.open(place / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 2)
        shim.install()
        try:
            writer.act(home, place)
            code = 0
        except FinetuneError:
            code = 1
        (place / "calls").write_text(str(len(shim.calls)), "ascii")
    except BaseException:  # noqa: BLE001 - a fork must not go on as its parent
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
