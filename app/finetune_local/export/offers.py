"""What an adapter, or a bare base, can be exported as: each target with what every format will take, or why it cannot be."""

from __future__ import annotations

from typing import Any

from finetune_local.adapters.library import base_of, find, rope_factor_of
from finetune_local.export.targets import Source, Target, targets
from finetune_local.models import resolve
from finetune_local.spec.run import DEFAULT_MODEL
from finetune_local.system.errors import UserError
from finetune_local.system.paths import Home

BASE = "base"
"""In an adapter's place: the model alone."""


def offers(home: Home, adapter: str, model: str | None = None) -> dict[str, Any]:
    """A plain object; nothing is fetched or written, and no framework is loaded. Raises AdapterError.

    name (for a file), base (its name here, None where it is not on this machine), targets: by key {"reason": why it cannot be,
    "" where it can; "formats": [{"format", "bytes"}, or "reason" instead of bytes], "notes": sentences to be told
    beforehand}.
    """
    folder = None if adapter == BASE else find(adapter, home)
    base, missing = None, ""
    chosen = model or (base_of(folder) if folder is not None else DEFAULT_MODEL)
    if chosen is None:
        missing = f"{folder}: it does not say which base it was made on. Give the base with --model."
    else:
        try:
            base = resolve.find(chosen, home).stretched(rope_factor_of(folder) if folder is not None else 1.0)
        except UserError as error:
            missing = str(error)
    source = Source(base, folder)
    return {
        "name": source.name,
        "base": base.name if base is not None else None,
        "targets": {key: _offer(target, source, missing) for key, target in targets().items()},
    }


def _offer(target: Target, source: Source, missing: str) -> dict[str, Any]:
    reason = missing if target.needs_base and source.base is None else ""
    if not reason:
        try:
            target.check_source(source)
        except UserError as error:
            reason = str(error)
    if reason:
        return {"reason": reason, "formats": [], "notes": []}
    formats = [_format(target, source, quant) for quant in target.quants]
    return {"reason": "", "formats": formats, "notes": target.notes(source)}


def _format(target: Target, source: Source, quant: str) -> dict[str, Any]:
    try:
        return {"format": quant, "bytes": target.size(source, quant)}
    except UserError as error:
        return {"format": quant, "reason": str(error)}
