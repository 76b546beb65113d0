"""Export targets: one file each, found by listing this folder.

A target is a module with
    TARGET: Target        its key, its words, its quantization types, how it is written and how it is verified
The window, the command line, the docs and the verification read everything from it. Its Chinese is in assets/strings/targets.toml; a
target without Chinese is shown in English.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_local.system.errors import AdapterError, ModelError
from finetune_local.system.fields import declared, in_order
from finetune_local.system.messages import Progress, msg

if TYPE_CHECKING:
    from finetune_local.export.verification.verify import Prepared, Receiver, Verification
    from finetune_local.export.weights import MergedWeights
    from finetune_local.models.folder import ModelFolder


import os

from finetune_local.system.errors import DiskFull
from finetune_local.system.files import free_bytes
from finetune_local.system.messages import system_reason

ADVICE = msg("No partial files were left. Free some space, or choose an --out on another disk.")
_SPARE = 32 * 2**20


@dataclass(frozen=True)
class Quant:
    """A form in which a target can be written: a quantization type, a data type, a folder or a zip."""

    key: str
    title: str
    summary: str
    common: bool = True
    """Whether the window shows it in the short list."""


@dataclass(frozen=True)
class Command:
    """A command to use an export in another program; `text` is "" if there is nothing to type and `title` is an instruction."""

    key: str
    title: str
    text: str = ""


@dataclass(frozen=True)
class Source:
    """What is exported: a base with an adapter, or one of the two. An adapter alone is for targets that need no base."""

    base: ModelFolder | None
    adapter: Path | None
    prepared: Prepared | None = None
    """The answers of base + adapter for the verification, if they are computed already."""

    def with_answers(self, prepared: Prepared) -> Source:
        """The same source with the answers of base + adapter; `weights` is not computed again."""
        result = replace(self, prepared=prepared)
        if "weights" in self.__dict__:
            result.__dict__["weights"] = self.__dict__["weights"]
        return result

    @property
    def model(self) -> ModelFolder:
        """The base. Raises ModelError if there is none."""
        if self.base is None:
            raise ModelError(msg("this export needs a base model. Choose one with --model."))
        return self.base

    @property
    def adapter_folder(self) -> Path:
        """The adapter's folder. Raises AdapterError for a bare base."""
        if self.adapter is None:
            raise AdapterError(msg("the base model alone has no adapter to export. Choose a run or an adapter."))
        return self.adapter

    @property
    def name(self) -> str:
        """A name for files: the base's, then the run's or the adapter folder's."""
        parts = [self.base.name.replace("/", "-")] if self.base is not None else []
        if self.adapter is not None:
            parts.append(self.adapter.parent.name if self.adapter.name == "adapter" else self.adapter.name)
        return "-".join(parts)

    @cached_property
    def weights(self) -> MergedWeights:
        """Base and adapter merged. Raises AdapterError if the adapter does not fit or cannot be merged."""
        from finetune_local.export.weights import MergedWeights

        return MergedWeights(self.model, self.adapter)


class Target(ABC):
    """One export target. The class attributes describe it; the methods are in the order in which they are called."""

    key: str
    title: str
    summary: str
    """For the docs and the window: where the export is used."""
    order: int = 50
    """Targets with a lower number are shown first."""
    quants: tuple[Quant, ...]
    """The forms it can be written in, the default first."""
    quants_title: str = "Quantization type"
    """The label of the choice among `quants`."""
    folder_title: str = ""
    """A folder of this target in a sentence: "a model folder"."""
    mark: str = ""
    """The file by which a folder of this target is recognized."""
    needs_base: bool = True
    """Whether it is made from a base."""
    receivers: Sequence[Receiver] = ()
    """The programs that open the export in the verification."""

    @property
    def quant_keys(self) -> tuple[str, ...]:
        """The keys of `quants`, the default first."""
        return tuple(quant.key for quant in self.quants)

    @abstractmethod
    def is_folder(self, quant: str) -> bool:
        """Whether it writes a folder, or one file."""

    @abstractmethod
    def file_name(self, name: str, quant: str) -> str:
        """The export's usual file or folder name; `name` is Source.name."""

    def place(self, out: Path, name: str, quant: str) -> Path:
        """The path to write for the user's `out`: `out` itself, or if a file is to be written and `out` is a folder, a file in it."""
        return out if self.is_folder(quant) or not out.is_dir() else out / self.file_name(name, quant)

    @abstractmethod
    def check_source(self, source: Source) -> None:
        """Raise ModelError or AdapterError if this source cannot be exported in any quantization type."""

    def notes(self, source: Source) -> list[str]:
        """Sentences on known limits of programs the export is for, shown before anything is written."""
        return []

    @abstractmethod
    def size(self, source: Source, quant: str) -> int:
        """Approximate size of the export in bytes; nothing is written. Raises ModelError if this type cannot be written here."""

    def recommended(self, sizes: Mapping[str, int]) -> str | None:
        """The recommended quantization type, given the size in bytes of each possible one; None if none is possible."""
        return next(iter(sizes), None)

    @abstractmethod
    def check_values(self, source: Source, out: Path, quant: str) -> None:
        """Raise errors that write() would raise only after long work: too little space, values out of range, the tokenizer."""

    @abstractmethod
    def write(self, source: Source, out: Path, quant: str, progress: Progress) -> list[Path]:
        """Write the export at `out`, completely or not at all; returns the files. Raises ModelError, AdapterError, DiskFull."""

    def can_be_opened(self) -> bool:
        """Whether any receiver can run here, so that check() needs the answers of base + adapter."""
        return any(not receiver.missing() for receiver in self.receivers)

    @abstractmethod
    def check(
        self, source: Source, out: Path, quant: str, backend: str, progress: Progress, skip: Collection[str] = ()
    ) -> Verification:
        """Verify the export at `out`; `skip` names receivers to omit. Raises VerificationFailed; not checked is a result."""

    def commands(self, out: Path, files: Sequence[Path]) -> list[Command]:
        """Commands that use the export at `out` in other programs."""
        return []


@cache
def targets() -> Mapping[str, Target]:
    """Every target by its key, in the order they are shown."""
    return in_order(declared(__name__, "TARGET", Target))  # type: ignore[type-abstract]


def receiver_names() -> tuple[str, ...]:
    """The programs that open exports in the verification, each once."""
    return tuple(dict.fromkeys(one.name for target in targets().values() for one in target.receivers))


def check_room(out: Path, size: int) -> None:
    """Raise DiskFull if the disk of `out` has less than `size` bytes plus a margin."""
    free = free_bytes(out)
    if free < size + _SPARE:
        raise DiskFull(
            msg(
                "the export needs {size} but the disk of {path} has {free} free. Free some space, or choose an --out "
                "on another disk.",
                size=_megabytes(size),
                path=out,
                free=_megabytes(free),
            )
        )


def check_writable(out: Path) -> None:
    """Create the folder for an export. Raises ModelError if it cannot be created or written."""
    folder = out.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(
            msg(
                "--out {out}: {folder} cannot be created ({error}). Choose another location.",
                out=out,
                folder=folder,
                error=system_reason(error),
            )
        ) from None
    if not os.access(folder, os.W_OK):
        raise ModelError(
            msg(
                "--out {out}: {folder} cannot be written. Choose another location, or change its permissions.",
                out=out,
                folder=folder,
            )
        )


def check_out(out: Path, target: Target, quant: str, overwrite: bool, sources: list[Path]) -> None:
    """Refuse an --out that must not be replaced. Raises ModelError.

    `sources` are folders the export reads: never replaced or written into. A folder is replaced only if it is an export of the same
    target without subfolders, so that a typing mistake in --out cannot delete documents.
    """
    folder = target.is_folder(quant)
    for source in sources:
        if out.resolve() == source.resolve() or (folder and out.resolve() in source.resolve().parents):
            raise ModelError(
                msg("--out {out}: the export would overwrite its own source. Choose another location.", out=out)
            )
    if out.is_dir() and not folder:
        raise ModelError(msg("--out {out}: this is a folder, but the export is one file. Choose a file name.", out=out))
    if out.is_file() and folder:
        raise ModelError(msg("--out {out}: this is a file, but the export is a folder. Choose another name.", out=out))
    if not out.exists() or (folder and not any(out.iterdir())):
        return
    if not overwrite:
        raise ModelError(
            msg("--out {out}: it already exists. Choose another location, or replace it with --overwrite.", out=out)
        )
    if folder and not ((out / target.mark).is_file() and all(p.is_file() for p in out.iterdir())):
        raise ModelError(
            msg(
                "--out {out}: this is not {what}, so it is not replaced. Choose another location.",
                out=out,
                what=target.folder_title,
            )
        )


def _megabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
