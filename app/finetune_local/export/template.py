"""Which chat template an export carries, and whether its adapter is asked with one at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finetune_local.data.tokenizer import Tokenizer


def speaks_raw(tokenizer: Tokenizer, adapter: Path | None) -> bool:
    """Whether prompts are texts as they are: the adapter learned so, or it is a bare base without a template."""
    from finetune_local.chat.opening import trained_raw

    return tokenizer.template is None if adapter is None else trained_raw(adapter)


def template_of(tokenizer: Tokenizer, adapter: Path | None) -> str | None:
    """The base's own template; for a base without one, the stand-in that an adapter on it was trained with."""
    return tokenizer.template if speaks_raw(tokenizer, adapter) else tokenizer.chat_template
