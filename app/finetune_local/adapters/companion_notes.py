"""What an adapter of the library carries beside its weights, as sentences for lists and pages."""

from __future__ import annotations

from pathlib import Path

from finetune_local.adapter_format import WEIGHTS, plan_of, read_peft
from finetune_local.adapters.companions import beside, companions
from finetune_local.adapters.library import base_of
from finetune_local.adapters.token_tables import rows_of
from finetune_local.models import resolve
from finetune_local.models.folder import ModelFolder
from finetune_local.models.tensors import read_header
from finetune_local.spec.low_rank.full_copies import is_table
from finetune_local.system.errors import UserError
from finetune_local.system.messages import msg
from finetune_local.system.paths import Home


def brings(folder: Path, home: Home, model: ModelFolder | None = None) -> list[str]:
    """What differs from the base in effect; empty if nothing does. Compared with `model`, by default the base it was trained on.

    Raises AdapterError for a damaged adapter.
    """
    shapes = {name: stored.shape for name, stored in read_header(folder / WEIGHTS).items()}
    plan = plan_of(folder, read_peft(folder), shapes)
    if not beside(folder) and not any(is_table(target) for target in plan.targets):
        return []
    try:
        chosen = base_of(folder)
        base = model if model is not None else resolve.find(chosen, home) if chosen else None
    except UserError:  # removed, or installed under another name
        base = None
    if base is None:
        return [msg("tokenizer files of its own; its base is not here to compare them with")] if beside(folder) else []
    found, rows = list(companions(base.path, folder).sentences), rows_of(plan, base)
    own = base.vocabulary
    if rows.embedding not in (0, own):
        found.append(msg("rows for {count} tokens, where the base has {other}", count=rows.embedding, other=own))
    return found
