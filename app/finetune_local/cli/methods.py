"""`methods`: what can be trained how, and where it works."""

from __future__ import annotations

import click

from finetune_local.cli.options import json_option
from finetune_local.cli.show import emit, table


@click.command("methods", short_help="List the fine-tuning methods and where each works.")
@json_option
def command(as_json: bool) -> None:
    """List the fine-tuning methods and the backends that have them."""
    from finetune_local.backend import backends
    from finetune_local.spec.methods import methods

    known = backends()
    rows = [
        {
            "key": m.key,
            "title": m.title,
            "summary": m.summary,
            "paper": m.paper,
            "backends": {name: m.family in backend.families() for name, backend in known.items()},
            "presets": dict(m.presets),
        }
        for m in methods().values()
    ]
    if as_json:
        emit(rows)
        return
    marks = {True: "yes", False: "no"}
    table(
        ["method", *known, "what it does"],
        [[m.key, *(marks[m.family in b.families()] for b in known.values()), m.summary] for m in methods().values()],
    )
