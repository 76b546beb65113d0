"""`adapters`: what was trained or brought in; rename, note, remove and restore."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from finetune_local import paths
from finetune_local.cli.options import home_option, json_option
from finetune_local.cli.show import emit, megabytes, note, table
from finetune_local.errors import AdapterError

if TYPE_CHECKING:
    from finetune_local.adapters.library import Entry


@click.group("adapters", invoke_without_command=True, short_help="List, import, rename and remove adapters.")
@home_option
@json_option
@click.pass_context
def command(context: click.Context, home: str | None, as_json: bool) -> None:
    """Adapters on this machine: those of runs, and those brought in by hand. Without a verb: list them."""
    context.obj = home
    if context.invoked_subcommand is None:
        _list(paths.home(home), as_json)


def _place(context: click.Context, home: str | None) -> paths.Home:
    """--home of the inner verb, else of the outer."""
    return paths.home(home or context.obj)


@command.command("list")
@home_option
@json_option
@click.pass_context
def list_adapters(context: click.Context, home: str | None, as_json: bool) -> None:
    """List them."""
    _list(_place(context, home), as_json)


@command.command("info")
@click.argument("name")
@home_option
@json_option
@click.pass_context
def info(context: click.Context, name: str, home: str | None, as_json: bool) -> None:
    """All that is known of one: base, method, size, settings."""
    from finetune_local.adapters.library import Entry, find
    from finetune_local.layout import read_adapter
    from finetune_local.spec.families import trainable_parameters

    folder = find(name, _place(context, home))
    plan, _ = read_adapter(folder)
    facts = Entry(name, folder, "folder").describe()
    facts |= {
        "parameters": trainable_parameters(plan),
        "modules": len(plan.targets),
        "settings": plan.settings.model_dump(mode="json", exclude={"targets"}),
    }
    if as_json:
        emit(facts)
    else:
        table(("", ""), ((key, value) for key, value in facts.items() if value not in (None, "", {})))


@command.command("rename")
@click.argument("name")
@click.argument("new")
@home_option
@json_option
@click.pass_context
def rename(context: click.Context, name: str, new: str, home: str | None, as_json: bool) -> None:
    """Rename an imported adapter."""
    from finetune_local.adapters import manage

    _tell(manage.rename(name, new, _place(context, home)), f"'{name}' is now '{new}'", as_json)


@command.command("note")
@click.argument("name")
@click.argument("text")
@home_option
@json_option
@click.pass_context
def write_note(context: click.Context, name: str, text: str, home: str | None, as_json: bool) -> None:
    """Write down what to remember about an adapter; "" removes the note."""
    from finetune_local.adapters import manage

    _tell(manage.write_note(name, text, _place(context, home)), f"noted for '{name}'", as_json)


@command.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--name", metavar="NAME", default=None, help="What to call it here. Automatic: the folder's name.")
@home_option
@json_option
@click.pass_context
def bring_in(context: click.Context, source: Path, name: str | None, home: str | None, as_json: bool) -> None:
    """Copy an adapter's folder (ours or PEFT's), or a zip of one, into the library."""
    from finetune_local.adapters import manage

    entry = manage.bring_in(source, _place(context, home), name)
    _tell(entry, f"imported as '{entry.name}'. Try it: finetune-local chat --adapter {entry.name}", as_json)


@command.command("remove")
@click.argument("name")
@home_option
@json_option
@click.pass_context
def remove(context: click.Context, name: str, home: str | None, as_json: bool) -> None:
    """Move an adapter to the trash."""
    from finetune_local.adapters import manage

    trash = manage.remove(name, _place(context, home))
    if as_json:
        emit({"name": name, "trash": str(trash)})
    else:
        note(f"'{name}' is in the trash. To take it back: finetune-local adapters restore {name}")


@command.command("restore")
@click.argument("name", required=False)
@home_option
@json_option
@click.pass_context
def restore(context: click.Context, name: str | None, home: str | None, as_json: bool) -> None:
    """Take back the adapter that was removed last, or the one of this name."""
    from finetune_local.adapters import manage

    entry = manage.restore(name, _place(context, home))
    _tell(entry, f"'{entry.name}' is back", as_json)


def _list(home: paths.Home, as_json: bool) -> None:
    from finetune_local.adapters.library import entries

    found = [_described(entry) for entry in entries(home)]
    if as_json:
        emit(found)
        return
    if not found:
        note("no adapters yet: train one, or `finetune-local adapters import FOLDER`")
        return
    columns = ("name", "base", "method", "rank", "origin")
    table(
        (*(c.upper() for c in columns), "SIZE", "NOTE"),
        ((*(f[c] if f[c] is not None else "" for c in columns), megabytes(f["bytes"]), f["note"]) for f in found),
    )


def _described(entry: Entry) -> dict[str, Any]:
    """As Entry.describe; a damaged adapter is listed with what is wrong, so that the others still are."""
    try:
        return entry.describe()
    except AdapterError as error:
        unknown = dict.fromkeys(("base", "method", "rank", "run", "created"))
        known = {"name": entry.name, "origin": entry.origin, "folder": str(entry.folder), "bytes": entry.bytes_on_disk}
        return {**known, **unknown, "note": f"cannot be used: {error}"}


def _tell(entry: Any, text: str, as_json: bool) -> None:
    if as_json:
        emit(entry.describe())
    else:
        note(text)
