"""Load an adapter from disk into a session for inference, and check that it is live: it fits this base and changes its output.

Training does not use this check: a newly initialised adapter leaves the output unchanged by design. `brings()` describes the files
beside an adapter's weights without loading the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from finetune_local.adapter_format import read_peft
from finetune_local.adapters.companions import beside, companions, prompt_setup
from finetune_local.adapters.identity import check_same_base, check_shapes, prompt_change, read_identity
from finetune_local.adapters.token_tables import check_rows, read_on
from finetune_local.backend import Session
from finetune_local.models.folder import ModelFolder
from finetune_local.system.errors import AdapterError
from finetune_local.system.messages import Message, join_messages, msg

if TYPE_CHECKING:
    from finetune_local.data.tokenizers.tokenizer import Tokenizer


from finetune_local.adapter_format import WEIGHTS, plan_of
from finetune_local.adapters.library import base_of
from finetune_local.adapters.token_tables import rows_of
from finetune_local.models import resolve
from finetune_local.models.tensors import read_header
from finetune_local.spec.low_rank.full_copies import is_table
from finetune_local.system.errors import UserError
from finetune_local.system.paths import Home

PROBE = "The quick brown fox jumps over the lazy dog. 敏捷的棕色狐狸跳过懒狗。 1 + 1 = 2"
PROBE_TOKENS = 24


def attach(
    session: Session,
    model: ModelFolder,
    tokenizer: Tokenizer,
    folder: Path,
    name: str,
    note: Callable[[str], None] = lambda _: None,
) -> int:
    """Load an adapter folder under `name`, activate it and return its number of parameters.

    `note` receives sentences for the user, for example that a plain PEFT adapter does not record its base.
    Raises AdapterError if it was trained on another base, is incomplete, or does not change the base's output; the session is then
    unchanged, with the bare base active.
    """
    identity = read_identity(folder)
    if identity is not None:
        check_same_base(identity, model, beside(folder))
        if changed := prompt_change(identity, model, beside(folder)):
            note(f"{folder.name}: {changed}")
    plan, tensors = read_on(folder, model)
    check_shapes(plan, model)
    if identity is None:
        note(f"{folder.name}: {_unproven(folder)}")
    if lacking := check_rows(plan, model, prompt_setup(model.path, folder), folder):
        note(msg("{name}: {lacking}", name=folder.name, lacking=lacking))
    if sentences := companions(model.path, folder).sentences:
        note(msg("{name}: used with what it comes with: {what}", name=folder.name, what=join_messages("; ", sentences)))
    count = session.attach(name, plan, seed=0, tensors=tensors)
    try:
        check_live(session, tokenizer, name, folder)
    except AdapterError:
        session.detach(name)
        session.activate(None)
        raise
    return count


def check_live(session: Session, tokenizer: Tokenizer, name: str, folder: Path) -> None:
    """Raise AdapterError if the adapter's logits on a short probe equal the base's or are not finite. Leaves the adapter active."""
    probe = tokenizer.ids(PROBE)[:PROBE_TOKENS]
    session.activate(None)
    base = session.logits(probe)
    session.activate(name)
    tuned = session.logits(probe)
    if not np.isfinite(tuned).all():
        raise AdapterError(
            msg(
                "{folder}: with this adapter the model's output is NaN or infinite. Its training diverged, or its "
                "file is damaged: use an earlier checkpoint of its run.",
                folder=folder,
            )
        )
    if np.array_equal(base, tuned):
        raise AdapterError(
            msg(
                "{folder}: this adapter changes nothing: the model answers exactly as without it. It was saved "
                "before its first training step, or its weights were lost. Train it further, or use another one.",
                folder=folder,
            )
        )


def _unproven(folder: Path) -> Message:
    """A note on the base of an adapter from another program: at most its name is known, which proves nothing."""
    if base := read_peft(folder).base_model_name_or_path:
        return msg(
            "a plain PEFT adapter trained on {name}; its shapes fit, but no checksum confirms that this is the "
            "same base.",
            name=repr(base[:200]),
        )
    return msg("a plain PEFT adapter that does not name its base model; its shapes fit.")


def brings(folder: Path, home: Home, model: ModelFolder | None = None) -> list[str]:
    """Sentences on how an adapter's files change prompting and vocabulary, compared with `model` (by default the base it was trained on).

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
        return (
            [msg("its own tokenizer files, which cannot be compared because its base is not installed")]
            if beside(folder)
            else []
        )
    found, rows = list(companions(base.path, folder).sentences), rows_of(plan, base)
    own = base.vocabulary
    if rows.embedding not in (0, own):
        found.append(msg("rows for {count} tokens, but the base has {other}", count=rows.embedding, other=own))
    return found
