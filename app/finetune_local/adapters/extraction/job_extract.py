"""Job: extract a full fine-tune's change as a LoRA adapter of the library. Arguments: the JSON-compatible fields of ExtractionRequest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune_local.adapters.extraction import from_full
from finetune_local.adapters.extraction.from_full import ExtractionRequest
from finetune_local.runtime.kinds import Tell
from finetune_local.system.paths import Home


def run(arguments: Mapping[str, Any], home: Home, tell: Tell) -> dict[str, Any]:
    """Run the extraction; returns what `adapters extract --json` prints. Raises SpecError, AdapterError, ModelError, DiskFull."""
    given = dict(arguments)
    tuned = given.pop("tuned", None)
    targets = tuple(given.pop("targets", ("all-linear",)))
    wanted = ExtractionRequest(**given, targets=targets, tuned=Path(tuned) if tuned else None)
    name, done = from_full.extract(wanted, home, tell)
    for text in done.notes:
        tell.note(text)
    return {"name": name, **done.as_json()}
