"""Job: an export. If stopped or failed it leaves no partial files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune_local.export.pipeline import export_named
from finetune_local.runtime.kinds import Tell
from finetune_local.system.messages import msg
from finetune_local.system.paths import Home


def run(arguments: Mapping[str, Any], home: Home, tell: Tell) -> dict[str, Any]:
    """`arguments`: adapter, target, format (None: the target's first), out, model, backend, gate, skip.

    The result is what `export --json` prints. Raises what exporting raises.
    """
    tell(msg("starting"))
    done = export_named(
        home,
        str(arguments["adapter"]),
        str(arguments["target"]),
        arguments.get("format"),
        Path(arguments["out"]),
        model=arguments.get("model"),
        backend=str(arguments.get("backend") or "auto"),
        gate=bool(arguments.get("gate", True)),
        skip=tuple(str(name) for name in arguments.get("skip") or ()),
        progress=tell,
    )
    return done.as_json()
