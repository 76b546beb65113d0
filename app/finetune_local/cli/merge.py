"""`merge`: short for `export --to merged`."""

from __future__ import annotations

import click

from finetune_local.cli.common import backend_option, home_option, json_option, model_option
from finetune_local.export.targets.merged import TARGET

ORDER = 8


@click.command(name="merge")
@click.argument("adapter")
@click.option("--out", metavar="DIR", required=True, help="The folder to write.")
@click.option(
    "--dtype",
    type=click.Choice(TARGET.quant_keys),
    default=TARGET.quant_keys[0],
    show_default=True,
    help="Data type of the weights.",
)
@model_option
@backend_option
@click.option(
    "--gate/--no-gate", "verification", default=True, help="Verify that the merged model answers as base + adapter do."
)
@click.option(
    "--skip-receiver", "skip", metavar="NAME", multiple=True,
    help=f"Leave this program out of the verification ({', '.join(one.name for one in TARGET.receivers)}); the result says so. Can be repeated.",
)  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace what is at --out.")
@home_option
@json_option
def command(
    adapter: str,
    out: str,
    dtype: str,
    model: str | None,
    backend: str,
    verification: bool,
    skip: tuple[str, ...],
    overwrite: bool,
    home: str | None,
    as_json: bool,
) -> None:
    """Merge ADAPTER (a folder, a run's name or a library name) into its base: a folder that needs no adapter."""
    from finetune_local.cli.export import run, show

    show(run(adapter, TARGET.key, dtype, out, model, backend, verification, skip, overwrite, home), as_json)
