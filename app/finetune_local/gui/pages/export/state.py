"""What the Export page remembers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import AliasChoices, Field

from finetune_local.gui.shell.state import State


@dataclass(frozen=True)
class ExportForm:
    """The selections. `formats`: the quantization type per target. `folder`: "" is the default. `verify` was called "gate"."""

    target: str = ""
    formats: Mapping[str, str] = field(default_factory=dict)
    folder: str = ""
    verify: Annotated[bool, Field(validation_alias=AliasChoices("verify", "gate"))] = True


@dataclass(eq=False)
class ExportState(State, prefix="export_"):
    """The form, and the export that this window started last. The selected adapter is in Shared."""

    form: ExportForm = field(default_factory=ExportForm)
    shown: str = ""
    """The job whose result is shown above the form."""
