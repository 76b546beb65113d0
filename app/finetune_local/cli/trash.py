"""`trash`: list removed items that can be restored; `trash empty` frees their space."""

from __future__ import annotations

import time

import click

from finetune_local.cli.common import emit, home_option, json_option, megabytes, note, table
from finetune_local.system import paths

ORDER = 11


@click.group(
    "trash", short_help="List removed runs and adapters, or delete them permanently.", invoke_without_command=True
)
@home_option
@json_option
@click.pass_context
def command(context: click.Context, home: str | None, as_json: bool) -> None:
    """List removed items. `runs restore` and `adapters restore` bring them back."""
    from finetune_local.system import trash

    context.obj = paths.home(home)
    if context.invoked_subcommand is not None:
        return
    found, damaged = trash.every(context.obj), trash.damaged(context.obj)
    for one in damaged if not as_json else ():
        note(one.problem)
    if as_json:
        sound = [{"kind": x.kind, "name": x.name, "from": str(x.source), "bytes": x.bytes_on_disk} for x in found]
        emit([*sound, *({"kind": "damaged", "name": x.name, "problem": x.problem} for x in damaged)])
    elif not found and damaged:
        return
    elif not found:
        note("the trash is empty")
    else:
        rows = [(x.kind, x.name, time.strftime("%Y-%m-%d %H:%M", time.localtime(x.when)), megabytes(x.bytes_on_disk))
                for x in found]  # fmt: skip
        table(("KIND", "NAME", "REMOVED", "SIZE"), rows)


@command.command("empty")
@click.option("--yes", is_flag=True, help="Do not ask.")
@home_option
@json_option
@click.pass_obj
def empty(outer: paths.Home, yes: bool, home: str | None, as_json: bool) -> None:
    """Permanently delete everything in the trash."""
    from finetune_local.system import trash

    place = paths.home(home) if home else outer
    if not yes:
        click.confirm(f"Delete for good all that is in {place.trash}?", abort=True, err=True)
    number = trash.empty(place)
    if as_json:
        emit({"deleted": number})
    else:
        note(f"permanently deleted: {number}")
