"""`doctor`: devices, the backend that would be used and why, and what to install. Works without any backend."""

from __future__ import annotations

from typing import Any

import click

from finetune_local.cli.options import backend_option, home_option, json_option
from finetune_local.cli.show import console, emit, megabytes, table
from finetune_local.system import paths


@click.command("doctor", short_help="Show what this machine has and which backend would be used.")
@backend_option
@home_option
@json_option
def command(backend: str, home: str | None, as_json: bool) -> None:
    """Show devices, memory, disk and versions, the backend that would be used and why, and what else could be installed."""
    from finetune_local.workspace.doctor import examine

    facts = examine(backend, paths.home(home))
    if as_json:
        emit(facts)
    else:
        _print(facts)


def _print(facts: dict[str, Any]) -> None:
    screen = console()
    screen.print(
        f"Backend: {facts['why']}" if facts["backend"] else f"No backend can be used. {facts['why']}", markup=False
    )
    whose = "other users can look into it" if facts["home_open_to_others"] else "yours alone"
    rows = [
        ["system", facts["system"]],
        ["processors", facts["processors"]],
        ["memory", f"{megabytes(facts['memory_bytes'])}, {megabytes(facts['memory_free_bytes'])} free now"],
        ["home", f"{facts['home']} ({megabytes(facts['disk_free_bytes'])} free; {whose})"],
    ]
    rows += [
        [f"device of {d['backend']}", f"{d['id']}: {d['name']}, {megabytes(d['memory_bytes'])}"]
        for d in facts["devices"]
    ]
    rows += [
        ["NVIDIA card", f"{c['name']}, {megabytes(c['memory_bytes'])}, driver {c['driver']}"]
        for c in facts["nvidia_cards"]
    ]
    rows += [[f"no {name}", b["missing"]] for name, b in facts["backends"].items() if b["missing"]]
    rows.append(["versions", ", ".join(f"{name} {version}" for name, version in facts["versions"].items())])
    table(["", ""], rows)
    for note in facts["notes"]:
        screen.print(f"• {note}", markup=False)
