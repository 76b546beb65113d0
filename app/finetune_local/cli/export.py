"""`export`: write a tuned model for other programs, verified before it gets its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from finetune_local.cli.common import backend_option, home_option, json_option, model_option
from finetune_local.export.targets import receiver_names, targets

if TYPE_CHECKING:
    from finetune_local.export.pipeline import Exported
    from finetune_local.export.verification.compare import ReceiverCheck
    from finetune_local.export.verification.verify import Verification

ORDER = 7

_TARGETS = "; ".join(f"{target.key}: {target.title}" for target in targets().values())
_QUANTS = "; ".join(f"{target.key}: {', '.join(target.quant_keys)}" for target in targets().values())


@click.command(name="export")
@click.argument("adapter")
@click.option("--to", "target", metavar="TARGET", required=True, help=f"The export target. {_TARGETS}.")
@click.option("--quant", metavar="TYPE", default=None, help=f"Quantization type. {_QUANTS}. [the first]")
@click.option("--out", metavar="PATH", required=True, help="The folder or the file to write.")
@model_option
@backend_option
@click.option(
    "--gate/--no-gate", "verification", default=True, help="Verify that the export answers as base + adapter do."
)
@click.option(
    "--skip-receiver", "skip", metavar="NAME", multiple=True,
    help=f"Leave this program out of the verification ({', '.join(receiver_names())}); the result says so. Can be repeated.",
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
    verification: bool,
    skip: tuple[str, ...],
    overwrite: bool,
    home: str | None,
    as_json: bool,
) -> None:
    """Export ADAPTER (a folder, a run's name or a library name): merged into its base model, or alone.

    `base` instead of an adapter exports the model given by --model.
    """
    done = run(adapter, target, quant, out, model, backend, verification, skip, overwrite, home)
    show(done, as_json)


def run(
    adapter: str,
    target: str,
    quant: str | None,
    out: str,
    model: str | None,
    backend: str,
    verification: bool,
    skip: tuple[str, ...],
    overwrite: bool,
    home: str | None,
) -> Exported:
    """Export, with progress on stderr."""
    from pathlib import Path

    from finetune_local.cli.common import console
    from finetune_local.export.pipeline import export_named
    from finetune_local.system.paths import home as home_folder

    with console(stderr=True).status("starting") as status:

        def progress(what: str, done: float | None) -> None:
            status.update(what if done is None else f"{what} {done:.0%}")

        return export_named(
            home_folder(home), adapter, target, quant, Path(out),
            model=model, backend=backend, verification=verification, skip=skip, overwrite=overwrite, progress=progress,
        )  # fmt: skip


def show(done: Exported, as_json: bool) -> None:
    """Print the files and the verification's result."""
    from finetune_local.cli.common import emit, megabytes

    if as_json:
        emit(done.as_json())
        return
    verification = done.verification
    click.echo(f"{done.out}  ({len(done.files)} files, {megabytes(done.as_json()['bytes'])})")
    if verification.passed is None:
        click.echo(f"gate: {verification.reason}")
        return
    if verification.tensors:
        click.echo(f"gate: passed: {verification.tensors} tensors read back equal")
        return
    click.echo(
        f"gate: passed against base + adapter on {verification.backend} ({verification.precision}), {verification.prompts} prompts"
    )
    for check in verification.receivers:
        _show_receiver(check, verification)


def _show_receiver(check: ReceiverCheck, verification: Verification) -> None:
    """Print what one receiving program did with the export."""
    if check.passed is None:
        click.echo(f"  {check.name}: {check.reason}")
        return
    version = f" {check.version}" if check.version else ""
    click.echo(f"  {check.name}{version}: " + ("passed" if check.passed else f"opens it, but {check.reason}"))
    click.echo(f"    {check.chats} chats read as the same tokens, stops at all of {check.stops} end tokens")
    if verification.tie_tolerance is None:
        click.echo("    greedy answers not compared: a quantised file may word things otherwise")
    else:
        click.echo(f"    greedy answers equal: {check.equal_texts} of {check.prompts}")
    for tie in check.near_ties:
        click.echo(f"    near-tie (within {verification.tie_tolerance:g}): {tie}")
    click.echo(
        f"    KL {check.kl_mean:.2g} nats per token, at most {check.kl_max:.2g}, over {check.tokens} tokens "
        f"({verification.kl_limit:g} allowed; over {verification.kl_over}), {check.seconds:g} s"
    )
    for note in check.notes:
        click.echo(f"    note: {note}")
