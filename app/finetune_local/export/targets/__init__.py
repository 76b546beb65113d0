"""A tuned model for other programs: one file per target, found by listing this folder; `verify.py` is the gate behind each.

A target is a module with
    TARGET: Target        its key, its quantisations, how it writes, and how what it wrote is checked
The other modules here are what the targets are made of.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from finetune_local.system.errors import AdapterError, ModelError

if TYPE_CHECKING:
    from finetune_local.export.verification.verify import Gate, Prepared
    from finetune_local.export.weights import MergedWeights
    from finetune_local.models.folder import ModelFolder

Progress = Callable[[str, float | None], None]
"""What is being done, and how much of it is done from 0 to 1 (None: unknown)."""


def silent(what: str, done: float | None) -> None:
    """Progress for those who do not look."""


@dataclass(frozen=True)
class Source:
    """What is exported: a base with an adapter on it, or one of the two. An adapter goes alone where the target wants no base."""

    base: ModelFolder | None
    adapter: Path | None
    prepared: Prepared | None = None
    """What the verification will hold the export against, where it was asked beforehand."""

    def asked(self, prepared: Prepared) -> Source:
        """The same, with what base + adapter answer; what was read of it stays read."""
        result = replace(self, prepared=prepared)
        if "weights" in self.__dict__:
            result.__dict__["weights"] = self.__dict__["weights"]
        return result

    @property
    def model(self) -> ModelFolder:
        """The base. Raises ModelError where none was given."""
        if self.base is None:
            raise ModelError("this export is made from a base model, and none was given. Give it with --model.")
        return self.base

    @property
    def adapter_folder(self) -> Path:
        """The adapter. Raises AdapterError where a bare base was given."""
        if self.adapter is None:
            raise AdapterError("a bare base has no adapter to export. Name a run or an adapter.")
        return self.adapter

    @property
    def name(self) -> str:
        """The base's name, with the run's (or the adapter folder's) behind it, fit for a file name."""
        parts = [self.base.name.replace("/", "-")] if self.base is not None else []
        if self.adapter is not None:
            parts.append(self.adapter.parent.name if self.adapter.name == "adapter" else self.adapter.name)
        return "-".join(parts)

    @cached_property
    def weights(self) -> MergedWeights:
        """Both in one. Raises AdapterError where the adapter does not fit, or cannot be merged."""
        from finetune_local.export.weights import MergedWeights

        return MergedWeights(self.model, self.adapter)


class Target(Protocol):
    """One kind of export. `quants` are its number formats, the default first; `mark` is the file by which a folder of its kind is
    known; `needs_base` whether it is made from a base."""

    key: str
    title: str
    quants: tuple[str, ...]
    mark: str
    needs_base: bool

    def is_folder(self, quant: str) -> bool:
        """Whether it writes a folder, or one file."""
        ...

    def file_name(self, name: str, quant: str) -> str:
        """What the export is called in a folder of exports; `name` is the model's."""
        ...

    def place(self, out: Path, name: str, quant: str) -> Path:
        """Where the export goes when the user says `out`: that itself, or a file of its own name in a folder that is there."""
        ...

    def check_source(self, source: Source) -> None:
        """Raise ModelError or AdapterError where this source cannot be exported so in any format, saying what to do."""
        ...

    def notes(self, source: Source) -> list[str]:
        """What is known before anything is written to be so in one of the programs that such an export is for."""
        ...

    def size(self, source: Source, quant: str) -> int:
        """Bytes that it will take, closely; nothing is written. Raises ModelError where this format cannot be written here."""
        ...

    def check_values(self, source: Source, out: Path, quant: str) -> None:
        """Raise what write() would after long work, as far as it can be known before: room, values, how a tokenizer is read."""
        ...

    def write(self, source: Source, out: Path, quant: str, progress: Progress) -> list[Path]:
        """Write everything at `out`, whole or not at all, and return the files. Raises ModelError, AdapterError, DiskFull."""
        ...

    def can_be_opened(self) -> bool:
        """Whether a program that such an export is for can be asked here, so that check() needs the answers of base + adapter."""
        ...

    def check(
        self, source: Source, out: Path, quant: str, backend: str, progress: Progress, skip: Collection[str] = ()
    ) -> Gate:
        """Verify what was written at `out`; `skip` names receivers to leave out. Raises GateFailed; says where it cannot be checked here."""
        ...


@cache
def targets() -> Mapping[str, Target]:
    """Every target by its key."""
    found: dict[str, Target] = {}
    for module in pkgutil.iter_modules(__path__):
        if not module.name.endswith("_worker"):  # scripts of their own, for other processes
            target: Target | None = getattr(importlib.import_module(f"{__name__}.{module.name}"), "TARGET", None)
            if target is not None:
                found[target.key] = target
    return found
