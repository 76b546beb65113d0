"""Job kind: extract what a full fine-tune changed as a LoRA adapter of the library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune_local.runtime.kinds import JobKind, Reporter
from finetune_local.system.paths import Home


def run(arguments: Mapping[str, Any], home: Home, report: Reporter) -> Mapping[str, Any]:
    """`arguments`: those of ExtractionRequest that are plain JSON. The result is what `adapters extract --json` prints.

    Raises SpecError, AdapterError, ModelError, DiskFull.
    """
    from finetune_local.adapters.extraction import from_full

    options = dict(arguments)
    tuned = options.pop("tuned", None)
    targets = tuple(options.pop("targets", ("all-linear",)))
    request = from_full.ExtractionRequest(**options, targets=targets, tuned=Path(tuned) if tuned else None)
    name, done = from_full.extract(request, home, report)
    for text in done.notes:
        report.note(text)
    return {"name": name, **done.as_json()}


KIND = JobKind("extract", run, identity=lambda arguments: arguments.get("adapter"))
