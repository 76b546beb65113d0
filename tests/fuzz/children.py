"""The app's guarded children with limits that a fuzzer can wait for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune_local.data import guarded_template, tokenizer_core
from finetune_local.errors import ModelError
from finetune_local.system.guarded import Guarded, Limits


def quick_children() -> None:
    """Templates and tokenizers within half a second; what only transformers can read is refused, as that takes seconds."""
    tokenizer_core._child.close()
    tokenizer_core._child = Guarded("finetune_local.data.tokenizing", Limits(0.5, 10**9))
    tokenizer_core.LOAD_SECONDS, tokenizer_core.SECONDS = 1.0, 0.5
    tokenizer_core.converted = _refused
    guarded_template._child.close()
    guarded_template._child = Guarded("finetune_local.data.rendering", Limits(0.3, 400 * 2**20))


def _refused(folder: Path) -> dict[str, Any]:
    raise ModelError(f"{folder}: left to transformers.")
