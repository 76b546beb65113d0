"""`export`: a tuned model for other programs, checked before it gets its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from finetune_local.cli.options import backend_option, home_option, json_option, model_option

if TYPE_CHECKING:
    from finetune_local.export.pipeline import Exported
    from finetune_local.export.verification.compare import ReceiverCheck
    from finetune_local.export.verification.verify import Gate

FORMATS = {
    "gguf": "f16, bf16, f32, q8_0, q6_k, q5_k_m, q4_k_m, q5_1, q5_0, q4_1, q4_0",
    "ollama": "as gguf",
    "merged": "auto, float32, float16, bfloat16",
    "adapter": "folder, zip",
}
_FORMATS_HELP = (
    "Number format. " + "; ".join(f"{target}: {names}" for target, names in FORMATS.items()) + ". [the first]"
)


@click.command(name="export")
@click.argument("adapter")
@click.option(
    "--to", "target", metavar="TARGET", required=True,
    help="gguf (one file), ollama (a folder with GGUF and Modelfile), merged (a Hugging Face folder) or adapter (PEFT, as it is).",
)  # fmt: skip
@click.option("--quant", metavar="FORMAT", default=None, help=_FORMATS_HELP)
@click.option("--out", metavar="PATH", required=True, help="The folder, or for gguf and a zip the file, to write.")
@model_option
@backend_option
@click.option("--gate/--no-gate", default=True, help="Check that the export answers as base + adapter do.")
@click.option(
    "--skip-receiver", "skip", metavar="NAME", multiple=True,
    help="Do not ask this program when checking (transformers, mlx-lm, llama.cpp); the result says so. Can be repeated.",
)  # fmt: skip
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
    skip: tuple[str, ...],
    overwrite: bool,
    home: str | None,
    as_json: bool,
) -> None:
    """Export ADAPTER (a folder, a run's name or a library name): merged into its base model, or alone.

    The word `base` instead of an adapter exports the model of --model alone.
    """
    done = run(adapter, target, quant, out, model, backend, gate, skip, overwrite, home)
    show(done, as_json)


def run(
    adapter: str,
    target: str,
    quant: str | None,
    out: str,
    model: str | None,
    backend: str,
    gate: bool,
    skip: tuple[str, ...],
    overwrite: bool,
    home: str | None,
) -> Exported:
    """Export, and show how far it is on stderr."""
    from pathlib import Path

    from finetune_local.cli.show import console
    from finetune_local.export.pipeline import export_named
    from finetune_local.system.paths import home as home_folder

    with console(stderr=True).status("starting") as status:

        def progress(what: str, done: float | None) -> None:
            status.update(what if done is None else f"{what} {done:.0%}")

        return export_named(
            home_folder(home), adapter, target, quant, Path(out),
            model=model, backend=backend, gate=gate, skip=skip, overwrite=overwrite, progress=progress,
        )  # fmt: skip


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
    if gate.tensors:
        click.echo(f"gate: passed: {gate.tensors} tensors read back equal")
        return
    click.echo(f"gate: passed against base + adapter on {gate.backend} ({gate.precision}), {gate.prompts} prompts")
    for check in gate.receivers:
        _show_receiver(check, gate)


def _show_receiver(check: ReceiverCheck, gate: Gate) -> None:
    """What one program that opened the export was seen to do."""
    if check.passed is None:
        click.echo(f"  {check.name}: {check.reason}")
        return
    version = f" {check.version}" if check.version else ""
    click.echo(f"  {check.name}{version}: " + ("passed" if check.passed else f"opens it, but {check.reason}"))
    click.echo(f"    {check.chats} chats read as the same tokens, stops at all of {check.stops} end tokens")
    if gate.tie_tolerance is None:
        click.echo("    greedy answers not compared: a quantised file may word things otherwise")
    else:
        click.echo(f"    greedy answers equal: {check.equal_texts} of {check.prompts}")
    for tie in check.near_ties:
        click.echo(f"    near-tie (within {gate.tie_tolerance:g}): {tie}")
    click.echo(
        f"    KL {check.kl_mean:.2g} nats per token, at most {check.kl_max:.2g}, over {check.tokens} tokens "
        f"({gate.kl_limit:g} allowed; over {gate.kl_over}), {check.seconds:g} s"
    )
    for note in check.notes:
        click.echo(f"    note: {note}")
