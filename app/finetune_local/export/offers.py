"""The export targets for an adapter or a bare base: the bytes of every quantization type, or the reason why it cannot be written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune_local.adapters.library import base_of, find, rope_factor_of
from finetune_local.export.targets import Source, Target, targets
from finetune_local.models import resolve
from finetune_local.spec.run import DEFAULT_MODEL
from finetune_local.system.errors import UserError
from finetune_local.system.messages import message_of, msg
from finetune_local.system.paths import Home

BASE = "base"
"""Instead of an adapter: the model alone."""


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
            base = resolve.find(chosen, home).stretched(rope_factor_of(folder) if folder is not None else 1.0)
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
