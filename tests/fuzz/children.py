"""The app's guarded children with limits that a fuzzer can wait for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune_local.data.encoding import guarded_template
from finetune_local.data.tokenizers import core
from finetune_local.system.errors import ModelError
from finetune_local.system.untrusted.guarded import Guarded, Limits


def quick_children() -> None:
    """Templates and tokenizers within half a second; what only transformers can read is refused, as that takes seconds."""
    core._child.close()
    core._child = Guarded("finetune_local.data.tokenizers.child", Limits(0.5, 10**9))
    core.LOAD_SECONDS, core.SECONDS = 1.0, 0.5
    core.converted = _refused
    guarded_template._child.close()
    guarded_template._child = Guarded("finetune_local.data.encoding.rendering", Limits(0.3, 400 * 2**20))


def _refused(folder: Path) -> dict[str, Any]:
    raise ModelError(f"{folder}: left to transformers.")
