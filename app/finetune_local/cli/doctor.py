"""`doctor`: devices, the backend that would be used and why, and what to install. Works without any backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from finetune_local.cli.common import backend_option, console, emit, home_option, json_option, megabytes, table
from finetune_local.system import paths

if TYPE_CHECKING:
    from finetune_local.workspace.doctor import MachineReport


@click.command("doctor", short_help="Show what this machine has and which backend would be used.")
@backend_option
@home_option
@json_option
def command(backend: str, home: str | None, as_json: bool) -> None:
    """Show devices, memory, disk and versions, the backend that would be used and why, and what else could be installed."""
    from finetune_local.workspace.doctor import examine

    report = examine(backend, paths.home(home))
    if as_json:
        emit(report.as_json())
    else:
        _print(report)


def _print(report: MachineReport) -> None:
    screen = console()
    screen.print(f"Backend: {report.why}" if report.backend else f"No backend can be used. {report.why}", markup=False)
    whose = "readable by other users" if report.home_open_to_others else "private"
    rows: list[list[object]] = [
        ["system", report.system],
        ["processors", report.processors],
        ["memory", f"{megabytes(report.memory_bytes)}, {megabytes(report.memory_free_bytes)} free now"],
        ["home", f"{report.home} ({megabytes(report.disk_free_bytes)} free; {whose})"],
    ]
    rows += [
        [
            f"device of {found.backend}",
            f"{found.device.id}: {found.device.name}, {megabytes(found.device.memory_bytes)}",
        ]
        for found in report.devices
    ]
    rows += [["NVIDIA card", f"{c.name}, {megabytes(c.memory_bytes)}, driver {c.driver}"] for c in report.nvidia_cards]
    rows += [[f"no {name}", b.missing] for name, b in report.backends.items() if b.missing]
    rows.append(["versions", ", ".join(f"{name} {version}" for name, version in report.versions.items())])
    table(["", ""], rows)
    for note in report.notes:
        screen.print(f"• {note}", markup=False)
