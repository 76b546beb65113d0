"""Adapters and runs across floors: list adapters with their scores, rename wherever a name is used, remove and restore."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from finetune_local.adapters import library, manage
from finetune_local.adapters.library import Entry, Library
from finetune_local.evaluation import store
from finetune_local.system import trash
from finetune_local.system.files import stamp
from finetune_local.system.paths import Home
from finetune_local.system.trash import Removed
from finetune_local.training.run_folder import runs
from finetune_local.training.run_folder.runs import Run


class Shelf:
    """The adapters with their scores, cached: only files that have changed are read again."""

    def __init__(self, home: Home) -> None:
        self._home, self._library = home, Library(home)
        self._known: dict[str, tuple[object, str | None, store.Scores | None]] = {}

    def listing(self) -> list[dict[str, Any]]:
        """Library.listing(), each entry with "scores": Scores.as_json() of its newest evaluation, or None."""
        scores = {adapter: found.as_json() for adapter, found in self._scores().items()}
        return [{**asdict(facts), "scores": scores.get(facts.name)} for facts in self._library.listing()]

    def _scores(self) -> dict[str, store.Scores]:
        place = self._home.evaluations
        found: dict[str, tuple[object, str | None, store.Scores | None]] = {}
        for name in os.listdir(place):  # noqa: PTH208 - creates no Path for what has not changed
            now, known = stamp(place, f"{name}/{store.RESULT}"), self._known.get(name)
            found[name] = known if known is not None and known[0] == now else (now, *_read(store.Saved(place / name)))
        self._known = found
        newest: dict[str, store.Scores] = {}
        for _, adapter, scores in found.values():
            if adapter and scores and scores.created_time >= newest.get(adapter, scores).created_time:
                newest[adapter] = scores
        return newest


def _read(saved: store.Saved) -> tuple[str | None, store.Scores | None]:
    """The adapter and the scores of an evaluation; None for one that is damaged or being written."""
    return (saved.adapter, saved.scores()) if saved.problem is None else (None, None)


def rename_adapter(name: str, new: str, home: Home) -> Entry:
    """Rename an adapter, and its run if a run produced it. Raises AdapterError, SpecError, RunError."""
    found = library.entry(name, home)
    if found.origin == "imported":
        renamed = manage.rename(name, new, home)
        store.follow_rename(home, name, new, renamed.folder)
        return renamed
    rename_run(Run(found.folder.parent), new, home)
    return library.entry(new, home)


def rename_run(run: Run, new: str, home: Home) -> Run:
    """Rename a run and its adapter. Raises AdapterError if the name is taken, SpecError if the run is running, RunError."""
    if new.casefold() != run.name.casefold():
        manage.check_name(new, home)
    renamed = runs.rename(run, new, home)
    store.follow_rename(home, run.name, new, renamed.adapter)
    return renamed


def remove_runs(names: Sequence[str], home: Home) -> list[Removed]:
    """Move runs to the trash: all, or none if one of them is running. Raises SpecError."""
    found = [runs.find(home, name) for name in names]
    for run in found:
        runs.check_idle(run)
    return [runs.remove(run, home) for run in found]


def remove_adapters(names: Sequence[str], home: Home) -> list[Removed]:
    """Move adapters to the trash; their runs keep data and checkpoints. Raises AdapterError."""
    found = [library.entry(name, home) for name in names]
    return [manage.remove(one.name, home) for one in found]


def put_back(keys: Sequence[str], home: Home) -> list[str]:
    """Restore entries of the trash by their keys; returns their names. Raises the error of the first that cannot be restored."""
    return [_put_back(one, home) for one in [trash.find(home, key) for key in keys]]


def _put_back(removed: Removed, home: Home) -> str:
    if removed.kind == runs.KIND:
        return runs.put_back(removed).name
    if removed.kind == store.KIND:
        return store.put_back(removed, home).name
    return manage.put_back(removed, home).name
