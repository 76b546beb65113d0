"""`adapters`: list trained and imported adapters; rename, annotate, remove, restore; extract one from a full fine-tune."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from finetune_local.cli.common import console, emit, home_option, json_option, megabytes, model_option, note, table
from finetune_local.system import paths
from finetune_local.system.errors import UserError, typed
from finetune_local.system.messages import message_of

if TYPE_CHECKING:
    from finetune_local.adapters.extraction.extract import Extraction

ORDER = 9


@click.group("adapters", invoke_without_command=True, short_help="List, import, rename and remove adapters.")
@home_option
@json_option
@click.pass_context
def command(context: click.Context, home: str | None, as_json: bool) -> None:
    """List the adapters on this machine, from runs and imports; or use one of the verbs below."""
    context.obj = home
    if context.invoked_subcommand is None:
        _list(paths.home(home), as_json)


def _place(context: click.Context, home: str | None) -> paths.Home:
    """--home of the inner verb, else of the outer one."""
    return paths.home(home or context.obj)


@command.command("list")
@home_option
@json_option
@click.pass_context
def list_adapters(context: click.Context, home: str | None, as_json: bool) -> None:
    """List all adapters."""
    _list(_place(context, home), as_json)


@command.command("info")
@click.argument("name")
@home_option
@json_option
@click.pass_context
def info(context: click.Context, name: str, home: str | None, as_json: bool) -> None:
    """Show one adapter: base, method, size, settings."""
    from finetune_local.adapters.attach import brings
    from finetune_local.adapters.library import details, find

    place = _place(context, home)
    folder = find(name, place)
    facts = details(name, folder, "folder").as_json() | {"brings": brings(folder, place)}
    if as_json:
        emit(facts)
    else:
        table(("", ""), ((key, value) for key, value in facts.items() if value not in (None, "", {}, [])))


@command.command("rename")
@click.argument("name")
@click.argument("new")
@home_option
@json_option
@click.pass_context
def rename(context: click.Context, name: str, new: str, home: str | None, as_json: bool) -> None:
    """Rename an adapter. A run's adapter is renamed with its run."""
    from finetune_local.workspace import adapters

    _report(adapters.rename_adapter(name, new, _place(context, home)), f"'{name}' is now '{new}'", as_json)


@command.command("note")
@click.argument("name")
@click.argument("text")
@home_option
@json_option
@click.pass_context
def write_note(context: click.Context, name: str, text: str, home: str | None, as_json: bool) -> None:
    """Write a note on an adapter; "" removes it."""
    from finetune_local.adapters import manage

    _report(manage.write_note(name, text, _place(context, home)), f"noted for '{name}'", as_json)


@command.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--name", metavar="NAME", default=None, help="What to call it here. Automatic: the folder's name.")
@home_option
@json_option
@click.pass_context
def bring_in(context: click.Context, source: Path, name: str | None, home: str | None, as_json: bool) -> None:
    """Import an adapter: a folder (this app's, PEFT's or mlx-lm's) or a zip of one."""
    from finetune_local.adapters import manage

    entry = manage.bring_in(source, _place(context, home), name, note)
    _report(entry, f"imported as '{entry.name}'. Try it: finetune-local chat --adapter {typed(entry.name)}", as_json)


@command.command("extract")
@click.argument("adapter", required=False)
@click.option(
    "--tuned", metavar="DIR", type=click.Path(path_type=Path), default=None,
    help="Instead of ADAPTER: the Hugging Face folder of a fully fine-tuned model; needs --model.",
)  # fmt: skip
@model_option
@click.option("--rank", type=click.IntRange(1), default=None, help="Width of the low-rank update of every layer. [16]")
@click.option(
    "--energy", metavar="SHARE", type=float, default=None,
    help="Instead of --rank: the share of the squared change to keep, such as 0.9.",
)  # fmt: skip
@click.option(
    "--target", "targets", metavar="NAME", multiple=True, default=("all-linear",),
    help="Which layers: all-linear, attention, mlp, or names such as q_proj (repeatable). [all-linear]",
)  # fmt: skip
@click.option(
    "--layers", metavar="TEXT", default="all", help="Which blocks: all, last:8, or a list such as 0-3,7. [all]"
)
@click.option(
    "--name", metavar="NAME", default=None, help="What to call it in the library. Automatic: the source, -lora."
)
@click.option(
    "--out", metavar="DIR", type=click.Path(path_type=Path), default=None,
    help="The folder to write, instead of the library.",
)  # fmt: skip
@home_option
@json_option
@click.pass_context
def extract(
    context: click.Context, /, adapter: str | None, tuned: Path | None, model: str | None, name: str | None, out: Path | None,
    home: str | None, as_json: bool, **chosen: Any,
) -> None:  # fmt: skip
    """Turn a full fine-tune into a LoRA adapter: the change of each linear layer, approximated at a given rank.

    \b
    finetune-local adapters extract my-full-run --rank 8
    finetune-local adapters extract --tuned DIR --model smollm2-135m --energy 0.9

    ADAPTER was trained with the method `full`: a run, a name from `adapters`, or a folder. The approximation error is printed.
    """
    from finetune_local.adapters.extraction import job_extract

    place = _place(context, home)
    request = job_extract.ExtractionRequest(adapter=adapter, tuned=tuned, model=model, name=name, out=out, **chosen)
    with console(stderr=True).status("starting") as status:

        def progress(what: str, done: float | None) -> None:
            status.update(what if done is None else f"{what} {done:.0%}")

        called, done = job_extract.extract(request, place, progress)
    if as_json:
        emit({"name": called, **done.as_json()})
    else:
        _show_extraction(done, called)


@command.command("remove")
@click.argument("name")
@home_option
@json_option
@click.pass_context
def remove(context: click.Context, name: str, home: str | None, as_json: bool) -> None:
    """Move an adapter to the trash."""
    from finetune_local.adapters import manage

    removed = manage.remove(name, _place(context, home))
    if as_json:
        emit({"name": name, "trash": str(removed.place)})
    else:
        note(f"'{name}' is in the trash. To take it back: finetune-local adapters restore {typed(name)}")


@command.command("restore")
@click.argument("name", required=False)
@home_option
@json_option
@click.pass_context
def restore(context: click.Context, name: str | None, home: str | None, as_json: bool) -> None:
    """Restore the most recently removed adapter, or the one called NAME."""
    from finetune_local.adapters import manage

    entry = manage.restore(name, _place(context, home))
    _report(entry, f"'{entry.name}' is back", as_json)


def _list(home: paths.Home, as_json: bool) -> None:
    from finetune_local.adapters.attach import brings
    from finetune_local.adapters.library import listing

    found = [(facts, [] if facts.problem else _carried(brings, facts.folder, home)) for facts in listing(home)]
    if as_json:
        emit([{**asdict(facts), "brings": sentences} for facts, sentences in found])
        return
    if not found:
        note("no adapters yet: train one, or `finetune-local adapters import FOLDER`")
        return
    columns = ("name", "base", "method", "rank", "origin")
    table(
        (*(c.upper() for c in columns), "SIZE", "BRINGS", "NOTE"),
        (
            (
                *(value if (value := getattr(facts, column)) is not None else "" for column in columns),
                megabytes(facts.bytes),
                "; ".join(sentences),
                f"cannot be used: {facts.problem}" if facts.problem else facts.note,
            )
            for facts, sentences in found
        ),
    )


def _carried(brings: Callable[[Path, paths.Home], list[str]], folder: str, home: paths.Home) -> list[str]:
    """What a listed adapter carries beside its weights; unreadable files are reported when the adapter is used."""
    try:
        return brings(Path(folder), home)
    except UserError as error:
        return [message_of(error)]


def _show_extraction(done: Extraction, name: str) -> None:
    """One line per layer name; --json has every layer."""
    groups: dict[str, list[Any]] = {}
    for layer in done.layers:
        groups.setdefault(layer.module.rpartition(".")[2], []).append(layer)
    table(
        ("LAYERS", "NUMBER", "CHANGE", "ERROR", "WORST"),
        (
            (
                key,
                len(group),
                f"{_mean(layer.relative for layer in group):.3%}",
                f"{_mean(layer.error for layer in group):.3f}",
                f"{max(group, key=lambda layer: layer.error).error:.3f}",
            )
            for key, group in groups.items()
        ),
        "CHANGE: ‖ΔW‖/‖W‖; ERROR: ‖ΔW − BA‖/‖ΔW‖",
    )
    for text in (*done.notes, *_left_out(done)):
        note(text)
    error = done.error
    click.echo(f"rank {done.rank}: {1 - error**2:.1%} of the squared change kept, error {error:.4f}")
    click.echo(f"adapter: {done.folder}")
    click.echo(f"try it:  finetune-local chat --adapter {typed(name)} --compare")


def _left_out(done: Extraction) -> list[str]:
    """One sentence per kind of changed weight that is not in the adapter."""
    kinds: dict[str, list[Any]] = {}
    for left in done.left:
        kinds.setdefault(left.kind, []).append(left)
    return [
        f"not in the adapter: {len(group)} changed weights of type '{kind}', the largest change {group[0].relative:.2%} "
        f"({group[0].name})"
        for kind, group in kinds.items()
    ]


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def _report(entry: Any, text: str, as_json: bool) -> None:
    if as_json:
        emit(entry.describe().as_json())
    else:
        note(text)
