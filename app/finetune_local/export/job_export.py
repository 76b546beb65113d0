"""Job kind: what `export` does. A stopped or failed export leaves nothing half-written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune_local.export.pipeline import clean, export_named
from finetune_local.runtime.kinds import JobKind, Reporter
from finetune_local.system.messages import msg
from finetune_local.system.paths import Home


def run(arguments: Mapping[str, Any], home: Home, report: Reporter) -> Mapping[str, Any]:
    """`arguments`: adapter, target, format (None: the target's first), out, model, backend, gate, skip.

    The result is what `export --json` prints. Raises what exporting raises.
    """
    report(msg("starting"))
    done = export_named(
        home,
        str(arguments["adapter"]),
        str(arguments["target"]),
        arguments.get("format"),
        Path(arguments["out"]),
        model=arguments.get("model"),
        backend=str(arguments.get("backend") or "auto"),
        verification=bool(arguments.get("gate", True)),
        skip=tuple(str(name) for name in arguments.get("skip") or ()),
        progress=report,
    )
    return done.as_json()


def out_of(arguments: Mapping[str, Any]) -> Path:
    """The folder or file that an export writes."""
    return Path(str(arguments["out"]))


def _identity(arguments: Mapping[str, Any]) -> object:
    """All but the name of the export, which gets a number where it is taken."""
    return [arguments.get(key) for key in ("adapter", "model", "target", "format")], out_of(arguments).parent


KIND = JobKind(
    "export",
    run,
    text_arguments=("out",),
    identity=_identity,
    clean_up=lambda arguments: clean(out_of(arguments)),
)
