"""What a source can be exported as (`offers()`), and one export from start to verdict: write, verify, and only then rename."""

from __future__ import annotations

import gc
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetune_local.adapters.library import base_of, find, rope_factor_of
from finetune_local.export.targets import Source, Target, check_out, check_writable, receiver_names, targets
from finetune_local.export.verification import verify
from finetune_local.export.verification.verify import Verification
from finetune_local.models.folder import ModelFolder
from finetune_local.models.resolve import find as find_model
from finetune_local.models.resolve import resolve
from finetune_local.spec.run import DEFAULT_MODEL
from finetune_local.system.errors import AdapterError, ModelError, UserError, VerificationFailed
from finetune_local.system.fields import choices
from finetune_local.system.files import ASIDE, remove, replace
from finetune_local.system.messages import Progress, message_of, msg, silent
from finetune_local.system.paths import Home, expanded
from finetune_local.system.private import share

UNCHECKED, FAILED = ".unchecked", ".failed"

BASE = "base"
"""Instead of an adapter: the model alone."""


@dataclass(frozen=True)
class Exported:
    """The files of an export and the verification's verdict."""

    out: Path
    files: list[Path]
    verification: Verification

    def as_json(self) -> dict[str, Any]:
        """What `export --json` prints."""
        size = sum(file.stat().st_size for file in self.files)
        return {
            "out": str(self.out),
            "files": [str(f) for f in self.files],
            "bytes": size,
            "gate": asdict(self.verification),
        }


def export(
    key: str,
    model: ModelFolder | None,
    adapter: Path | None,
    out: Path,
    quant: str | None = None,
    *,
    backend: str = "auto",
    verification: bool = True,
    skip: Collection[str] = (),
    overwrite: bool = False,
    progress: Progress = silent,
) -> Exported:
    """Export base + adapter (or one of the two alone) as the target `key`.

    Raises ModelError (an architecture, type or path that cannot be used), AdapterError, DiskFull, and VerificationFailed, which leaves
    the export under a name that ends in ".failed" and an earlier export at `out` unchanged.
    """
    target = target_of(key)
    chosen = _chosen_quant(target, quant, skip)
    source = Source(model, adapter)
    out = target.place(expanded(out).absolute(), source.name, chosen)
    check_out(out, target, chosen, overwrite, [place for place in (model and model.path, adapter) if place])
    check_writable(out)
    unchecked, failed = (out.with_name(out.name + ending) for ending in (UNCHECKED, FAILED))
    try:
        if verification and target.needs_base:  # report what cannot run here before anything is written
            target.check_values(source, unchecked, chosen)
            if target.can_be_opened():
                source = source.with_answers(verify.prepare(source.model, adapter, backend, progress))
        target.write(source, unchecked, chosen, progress)
        verdict = Verification(None, msg("not verified: verification was turned off"))
        if verification:
            verdict = target.check(source, unchecked, chosen, backend, progress, skip)
            gc.collect()  # release the loaded export and its memory maps: Windows does not rename mapped files
    except VerificationFailed as error:
        remove(failed)
        replace(unchecked, failed)
        raise VerificationFailed(
            msg(
                "the export's answers differ from those of base + adapter. {error} It is kept in {path}.",
                error=error,
                path=failed,
            )
        ) from error
    except BaseException:
        remove(unchecked)
        raise
    replace(unchecked, out)
    return Exported(out, sorted(out.iterdir()) if out.is_dir() else [out], verdict)


def _chosen_quant(target: Target, quant: str | None, skip: Collection[str]) -> str:
    """The quantization type to write, the target's default first. Raises ModelError for an unknown type or receiver."""
    if unknown := [name for name in skip if name not in receiver_names()]:
        raise ModelError(
            msg(
                "--skip-receiver {name}: no program with this name opens exports. Known: {names}.",
                name=unknown[0],
                names=", ".join(receiver_names()),
            )
        )
    chosen = quant or target.quant_keys[0]
    if chosen not in target.quant_keys:
        raise ModelError(
            msg(
                "--quant {quant}: --to {target} supports {names}.",
                quant=chosen,
                target=target.key,
                names=", ".join(target.quant_keys),
            )
        )
    return chosen


def export_named(
    home: Home,
    adapter: str,
    key: str,
    quant: str | None,
    out: Path,
    *,
    model: str | None = None,
    backend: str = "auto",
    verification: bool = True,
    skip: Collection[str] = (),
    overwrite: bool = False,
    progress: Progress = silent,
) -> Exported:
    """Export by names: `adapter` a run, a library name, a folder, or "base" for `model` alone. Raises what export() raises."""
    target = target_of(key)
    folder = None if adapter == BASE else find(adapter, home)
    base = None
    if target.needs_base:
        chosen = model or (base_of(folder) if folder is not None else DEFAULT_MODEL)
        if chosen is None:
            raise AdapterError(msg("{folder}: its base model is unknown. Name it with --model.", folder=folder))
        base = resolve(chosen, home, progress).stretched(rope_factor_of(folder) if folder is not None else 1.0)
    done = export(
        key,
        base,
        folder,
        out,
        quant,
        backend=backend,
        verification=verification,
        skip=skip,
        overwrite=overwrite,
        progress=progress,
    )
    share(done.out, home.root)
    return done


def target_of(key: str) -> Target:
    """A target by its key. Raises ModelError listing the known ones."""
    if key not in targets():
        raise ModelError(msg("there is no export '{name}'.{did_you_mean} Known: {names}.", **choices(key, targets())))
    return targets()[key]


def free_place(folder: Path, key: str, name: str, quant: str) -> Path:
    """A free path for an export in a folder: its usual name, with a number if that exists. Raises ModelError."""
    target = target_of(key)
    first = folder / target.file_name(name, quant)
    stem, ending = (first.name, "") if target.is_folder(quant) else (first.stem, first.suffix)
    place, number = first, 1
    while place.exists():
        number += 1
        place = first.with_name(f"{stem}-{number}{ending}")
    return place


def clean(out: Path) -> None:
    """Remove the partial files of a killed export to `out`. Must not be called while the export is running."""
    unchecked = out.with_name(out.name + UNCHECKED)
    for rubbish in (unchecked, *(unchecked.with_name(ASIDE + kind + unchecked.name) for kind in ("", "files-"))):
        remove(rubbish)


@dataclass(frozen=True)
class QuantOffer:
    """One quantization type: the bytes of the export, or None and the reason why it cannot be written here."""

    key: str
    bytes: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class TargetOffer:
    """One target. `reason` says why the source cannot be exported to it; "" if it can."""

    reason: str = ""
    quants: tuple[QuantOffer, ...] = ()
    recommended: str | None = None
    """The key of the recommended quantization type; None if none can be written."""
    notes: tuple[str, ...] = ()
    """Sentences to show before anything is written."""

    def possible(self) -> list[QuantOffer]:
        """The quantization types that can be written here."""
        return [quant for quant in self.quants if quant.bytes is not None]


@dataclass(frozen=True)
class Offers:
    """Every target for one source. `name` is the source's name in file names; `base` the base's, None if it is not on this machine."""

    name: str
    base: str | None
    targets: Mapping[str, TargetOffer]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Offers:
        """Offers from the fields that another process of this version sent (dataclasses.asdict)."""
        found = {}
        for key, offer in values["targets"].items():
            quants = tuple(QuantOffer(**quant) for quant in offer["quants"])
            found[key] = TargetOffer(offer["reason"], quants, offer["recommended"], tuple(offer["notes"]))
        return cls(values["name"], values["base"], found)


def offers(home: Home, adapter: str, model: str | None = None) -> Offers:
    """The targets for an adapter (BASE: for `model` alone). Nothing is downloaded or written, and no framework is loaded.

    Raises AdapterError.
    """
    folder = None if adapter == BASE else find(adapter, home)
    base, missing = None, ""
    chosen = model or (base_of(folder) if folder is not None else DEFAULT_MODEL)
    if chosen is None:
        missing = msg("{folder}: its base model is unknown. Name it with --model.", folder=folder)
    else:
        try:
            base = find_model(chosen, home).stretched(rope_factor_of(folder) if folder is not None else 1.0)
        except UserError as error:
            missing = message_of(error)
    source = Source(base, folder)
    found = {key: _offer(target, source, missing) for key, target in targets().items()}
    return Offers(source.name, base.name if base is not None else None, found)


def _offer(target: Target, source: Source, missing: str) -> TargetOffer:
    reason = missing if target.needs_base and source.base is None else ""
    if not reason:
        try:
            target.check_source(source)
        except UserError as error:
            reason = message_of(error)
    if reason:
        return TargetOffer(reason)
    quants = tuple(_quant(target, source, quant) for quant in target.quant_keys)
    sizes = {quant.key: quant.bytes for quant in quants if quant.bytes is not None}
    return TargetOffer("", quants, target.recommended(sizes), tuple(target.notes(source)))


def _quant(target: Target, source: Source, quant: str) -> QuantOffer:
    try:
        return QuantOffer(quant, target.size(source, quant))
    except UserError as error:
        return QuantOffer(quant, reason=message_of(error))
