"""`export`: a tuned model for other programs, checked before it gets its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from finetune_local.cli.options import backend_option, home_option, json_option, model_option

if TYPE_CHECKING:
    from finetune_local.export.job import Exported

QUANTS = ("f16", "bf16", "q8_0", "f32", "auto", "float32", "float16", "bfloat16")


@click.command(name="export")
@click.argument("adapter")
@click.option(
    "--to", "target", metavar="TARGET", required=True, help="merged (a Hugging Face folder) or gguf (one file)."
)
@click.option(
    "--quant", type=click.Choice(QUANTS), default=None, help="Number format; gguf: f16 unless given; merged: auto."
)
@click.option("--out", metavar="PATH", required=True, help="The folder, or for gguf the file, to write.")
@model_option
@backend_option
@click.option("--gate/--no-gate", default=True, help="Check that the export answers as base + adapter do.")
@click.option("--overwrite", is_flag=True, help="Replace what is at --out.")
@home_option
@json_option
def command(
    adapter: str,
    target: str,
    quant: str | None,
    out: str,
    model: str | None,
    backend: str,
    gate: bool,
    overwrite: bool,
    home: str | None,
    as_json: bool,
) -> None:
    """Export ADAPTER (a folder, a run's name or a library name) merged into its base model.

    The word `base` instead of an adapter exports the model of --model alone.
    """
    done = run(adapter, target, quant, out, model, backend, gate, overwrite, home)
    show(done, as_json)


def run(
    adapter: str,
    target: str,
    quant: str | None,
    out: str,
    model: str | None,
    backend: str,
    gate: bool,
    overwrite: bool,
    home: str | None,
) -> Exported:
    """Find adapter and base, export, and show how far it is on stderr."""
    from pathlib import Path

    from finetune_local.adapters.library import base_of, find, rope_factor_of
    from finetune_local.cli.show import console
    from finetune_local.errors import AdapterError
    from finetune_local.export.job import export
    from finetune_local.models.resolve import resolve
    from finetune_local.paths import home as home_folder
    from finetune_local.spec.run import DEFAULT_MODEL

    place = home_folder(home)
    folder = None if adapter == "base" else find(adapter, place)
    chosen = model or (base_of(folder) if folder is not None else DEFAULT_MODEL)
    if chosen is None:
        raise AdapterError(f"{folder}: it does not say which base it was made on. Give the base with --model.")
    with console(stderr=True).status("starting") as status:

        def progress(what: str, done: float | None) -> None:
            status.update(what if done is None else f"{what} {done:.0%}")

        base = resolve(chosen, place, progress).stretched(rope_factor_of(folder) if folder is not None else 1.0)
        return export(
            target, base, folder, Path(out), quant, backend=backend, gate=gate, overwrite=overwrite, progress=progress
        )


def show(done: Exported, as_json: bool) -> None:
    """The files and the verdict."""
    from finetune_local.cli.show import emit, megabytes

    if as_json:
        emit(done.as_json())
        return
    gate = done.gate
    click.echo(f"{done.out}  ({len(done.files)} files, {megabytes(done.as_json()['bytes'])})")
    if gate.passed is None:
        click.echo(f"gate: {gate.reason}")
        return
    click.echo(f"gate: passed against base + adapter on {gate.backend} ({gate.precision}), {gate.prompts} prompts")
    click.echo("  prompt ids, chat template and stop tokens equal")
    if gate.tie_tolerance is None:
        click.echo("  greedy answers not compared: a quantised file may word things otherwise")
    else:
        click.echo(f"  greedy answers equal: {gate.equal_texts} of {gate.prompts}")
    for tie in gate.near_ties:
        click.echo(f"  near-tie (within {gate.tie_tolerance:g}): {tie}")
    click.echo(
        f"  KL {gate.kl_mean:.2g} nats per token, at most {gate.kl_max:.2g}, over {gate.tokens} tokens "
        f"({gate.kl_limit:g} allowed; over {gate.kl_over})"
    )
