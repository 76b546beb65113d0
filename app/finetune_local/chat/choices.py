"""What can answer in a chat: the base to start with and the adapters that fit it. Nothing is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from finetune_local.adapter_format import CONFIG, WEIGHTS
from finetune_local.adapters.companions import beside
from finetune_local.adapters.identity import FILE as IDENTITY
from finetune_local.adapters.identity import check_same_base, read_identity
from finetune_local.adapters.library import base_of, entries, rope_factor_of
from finetune_local.adapters.library import find as find_adapter
from finetune_local.models.folder import CONFIG as MODEL_CONFIG
from finetune_local.models.folder import TOKENIZER, ModelFolder
from finetune_local.models.install import installed
from finetune_local.models.resolve import find
from finetune_local.spec.base.tokenizer_files import TRAVEL
from finetune_local.spec.run import DEFAULT_MODEL
from finetune_local.system.errors import AdapterError, ModelError, UserError
from finetune_local.system.files import stamp
from finetune_local.system.messages import message_of, msg
from finetune_local.system.paths import Home, located

MOST_ANSWERERS = 4


@dataclass(frozen=True)
class Offer:
    """An adapter of the library. `problem` says why it cannot be used with the chosen base; "" if it can."""

    name: str
    folder: Path
    problem: str = ""


def base(home: Home, requested: str | None, adapters: Sequence[str] = ()) -> str | None:
    """The base to chat with, as a value of `--model`; None if no base is installed.

    It is the base of the first adapter, else the requested one, else the small default if it is installed, else any installed one.
    """
    for name in adapters:
        with suppress(UserError):
            if made_on := base_of(find_adapter(name, home)):
                return made_on
    if requested:
        return requested
    known = installed(home.models)
    return DEFAULT_MODEL if DEFAULT_MODEL in known else known[0] if known else None


def opened(home: Home, model: str) -> ModelFolder:
    """The folder of a base on this machine, cached until it changes. Raises ModelError."""
    try:
        found = find(model, home)
    except ModelError:
        if model in installed(home.models) or located(model).is_dir():
            raise  # it exists but cannot be used
        raise ModelError(
            msg("the base '{model}' is not on this machine. Choose another one, or download it again.", model=model)
        ) from None
    return _folder(found.path, found.name, stamp(found.path, MODEL_CONFIG, TOKENIZER))


def listed(home: Home) -> list[Offer]:
    """Every adapter of the library, for any base."""
    return [Offer(entry.name, entry.folder) for entry in entries(home)]


def offers(home: Home, model: ModelFolder, more: Sequence[str] = ()) -> list[Offer]:
    """Every adapter of the library, and those named in `more`; adapters that fit the base come first."""
    found = [Offer(entry.name, entry.folder, _misfit(entry.folder, model)) for entry in entries(home)]
    known = {offer.name for offer in found}
    for name in more:
        if name not in known:
            try:
                folder = find_adapter(name, home)
                found.append(Offer(name, folder, _misfit(folder, model)))
            except AdapterError as error:
                found.append(Offer(name, Path(name), message_of(error)))
    return sorted(found, key=lambda offer: bool(offer.problem))


def _misfit(folder: Path, model: ModelFolder) -> str:
    return _problem(folder, stamp(folder, CONFIG, WEIGHTS, IDENTITY, *TRAVEL), model)


@lru_cache(maxsize=4096)
def _problem(folder: Path, _stamp: object, model: ModelFolder) -> str:
    """Why an adapter does not fit a base, by its identity. A plain PEFT adapter has no identity and is checked when it is loaded."""
    try:
        identity = read_identity(folder)
        if identity is not None:
            check_same_base(identity, model.stretched(rope_factor_of(folder)), beside(folder))
    except UserError as error:
        return message_of(error)
    return ""


@lru_cache(maxsize=16)
def _folder(path: Path, name: str, _stamp: object) -> ModelFolder:
    return ModelFolder.open(path, name)
