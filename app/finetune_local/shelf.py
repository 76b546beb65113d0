"""What takes more than one part of the app to know of an adapter or to do with it: renaming it wherever it is named."""

from __future__ import annotations

from finetune_local.adapters import library, manage
from finetune_local.adapters.library import Entry
from finetune_local.paths import Home
from finetune_local.train import runs
from finetune_local.train.runs import Run


def rename_adapter(name: str, new: str, home: Home) -> Entry:
    """Rename an adapter; one that a run made is renamed with its run. Raises AdapterError, SpecError, RunError."""
    found = library.entry(name, home)
    if found.origin == "imported":
        return manage.rename(name, new, home)
    rename_run(Run(found.folder.parent), new, home)
    return library.entry(new, home)


def rename_run(run: Run, new: str, home: Home) -> Run:
    """Rename a run and its adapter. Raises AdapterError (the name is taken), SpecError (it is running), RunError."""
    if new.casefold() != run.name.casefold():
        manage.check_name(new, home)
    return runs.rename(run, new, home)
