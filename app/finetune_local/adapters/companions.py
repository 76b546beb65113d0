"""Files beside an adapter's weights that decide how it is prompted. `prompt_setup()` is the only function that decides how a base is
prompted, alone or with an adapter; `companions()` reports what an adapter carries and how that differs from the base in effect.

Generation, scoring, merging and export all take tokenizer, chat template, end tokens and files from here. The same files are written
beside merged weights and beside an adapter, so that other programs prompt the model as the app does. Every written file that names an
end token names all of them, the end of a turn first: a base's end-of-text token may differ from what its chat template puts after an
answer, and a program that stops only at the former would generate up to its limit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_local.adapters.library import run_folder, run_tables
from finetune_local.data.conversation import Message, RowRejected
from finetune_local.spec.base.tokenizer_files import GENERATION, TRAVEL, brought, generation_settings, in_force
from finetune_local.system.files import stamp
from finetune_local.system.messages import msg

if TYPE_CHECKING:
    from finetune_local.data.tokenizers.tokenizer import Tokenizer


import json
import re
import shutil

from finetune_local.spec.base.config import read_optional_config
from finetune_local.spec.base.tokenizer_files import (
    CONFIG,
    SPECIAL,
    TEMPLATE,
    ends_in,
    template_of,
)

OF_RUN = "tokenizer"
"""Folder in a run folder with the tokenizer, template and generation settings used in training, written at the start."""

_BASES = ("config.json", *TRAVEL)
_NO_SETTINGS = ("_from_model_config", "transformers_version")
_NAMED = 4
"""Number of tokens that a sentence names; the rest is counted."""

_TEXTS = (
    "The quick brown fox jumps over the lazy dog. 12,345.67 + 8 = ?\n\n\tdef f(x): return x  # don't",
    "敏捷的棕色狐狸跳过懒狗。Ünïcødé 🙂 русский العربية\r\n  ",
)
_CHATS = (
    (Message("user", "Hi"),),
    (Message("system", "Be short."), Message("user", "Hi")),
    (Message("user", "Hi"), Message("assistant", "Hello."), Message("user", " 2 + 2?\n")),
)


@dataclass(frozen=True)
class PromptSetup:
    """How a base is prompted, with an adapter if there is one.

    `raw`: prompts are plain texts. `template` is the chat template an export carries; None only if the model is prompted raw and has
    none. `files` are the effective tokenizer files and generation settings, without the template.
    """

    tokenizer: Tokenizer
    raw: bool
    template: str | None
    stop_ids: frozenset[int]
    files: Mapping[str, Path]


@dataclass(frozen=True)
class Companions:
    """The files beside an adapter's weights, and in the other fields how they change prompting compared with the base."""

    files: tuple[str, ...] = ()
    template: bool = False
    added: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    remarked: tuple[str, ...] = ()
    """Tokens that are special for one of the two and plain text for the other."""
    words: bool = False
    """Whether plain text is tokenized differently."""
    ends: tuple[str, ...] = ()
    """The end tokens, if they differ from the base's."""
    settings: bool = False
    """Whether it has generation settings beside the end tokens. They are written into exports; the app uses its own."""
    sentences: tuple[str, ...] = field(default=())

    @property
    def differs(self) -> bool:
        """Whether the adapter is prompted differently from its base."""
        return bool(self.sentences)


def trained_raw(folder: Path) -> bool:
    """Whether the adapter was trained on plain texts (`--template raw`), so that its prompts should be plain too."""
    return run_tables(folder).get("data", {}).get("template") == "raw"


def carrier(adapter: Path) -> Path:
    """The folder with the files that decide how an adapter is prompted: its own, or for a checkpoint the run's."""
    if not brought(adapter) and (run := run_folder(adapter)) is not None and (run / OF_RUN).is_dir():
        return run / OF_RUN
    return adapter


def beside(adapter: Path) -> tuple[str, ...]:
    """Names of the files that decide how an adapter is prompted."""
    return brought(carrier(adapter))


def tokenizer_of(base: Path, adapter: Path | None = None) -> Tokenizer:
    """The tokenizer with the effective chat template, cached until one of the files changes. Raises ModelError."""
    if adapter is not None:
        adapter = carrier(adapter)
    if adapter is not None and not _brings_other_bytes(base, adapter):
        adapter = None
    own = () if adapter is None else stamp(adapter, *TRAVEL)
    return _tokenizer(base, adapter, stamp(base, *_BASES), own)


def prompt_setup(base: Path, adapter: Path | None = None) -> PromptSetup:
    """How to prompt a base, alone or with an adapter; both are folders. Raises ModelError, AdapterError."""
    tokenizer = tokenizer_of(base, adapter)
    raw = tokenizer.template is None if adapter is None else trained_raw(adapter)
    template = tokenizer.template if raw else tokenizer.chat_template
    return PromptSetup(
        tokenizer, raw, template, tokenizer.stop_ids, in_force(base, carrier(adapter) if adapter else None)
    )


def prompt_setup_in_training(tokenizer: Tokenizer, base: Path, raw: bool) -> PromptSetup:
    """How a run prompts the base it trains on."""
    template = tokenizer.template if raw else tokenizer.chat_template
    return PromptSetup(tokenizer, raw, template, tokenizer.stop_ids, in_force(base))


def companions(base: Path, adapter: Path) -> Companions:
    """An adapter's files beside its weights, compared with a base; both are folders. Raises ModelError."""
    adapter = carrier(adapter)
    return _companions(base, adapter, stamp(base, *_BASES), stamp(adapter, *TRAVEL))


@lru_cache(maxsize=256)
def _companions(base: Path, adapter: Path, _base: object, _own: object) -> Companions:
    files = brought(adapter)
    ours, theirs = tokenizer_of(base, adapter), tokenizer_of(base)
    if ours is theirs:
        return Companions(files)
    added, renamed, remarked = _tokens(ours, theirs)
    template = any(_rendered(ours, chat) != _rendered(theirs, chat) for chat in _CHATS)
    words = any(ours.ids(text) != theirs.ids(text) for text in _TEXTS)
    ends = () if ours.stop_ids == theirs.stop_ids else tuple(ours.token(i) for i in sorted(ours.stop_ids))
    settings = GENERATION in files and not _same_settings(adapter, base)
    found = Companions(files, template, added, renamed, remarked, words, ends, settings)
    return replace(found, sentences=tuple(_sentences(found)))


def chat_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """All token ids that occur in a few rendered chats, and the end tokens; chats that the template rejects are skipped."""
    found: set[int] = set()
    for chat in _CHATS:
        with suppress(RowRejected):
            found.update(tokenizer.prompt_ids(chat))
    return frozenset(found) | tokenizer.stop_ids


def _sentences(found: Companions) -> Sequence[str]:
    sentences = [msg("its own chat template")] if found.template else []
    if found.added:
        sentences.append(msg("{count} added tokens ({names})", count=len(found.added), names=_listed(found.added)))
    if found.renamed:
        sentences.append(
            msg(
                "{count} renamed tokens ({names})",
                count=len(found.renamed),
                names=_listed([f"{a} is {b}" for a, b in found.renamed]),
            )
        )
    if found.remarked:
        sentences.append(
            msg(
                "{count} tokens with a different special flag ({names})",
                count=len(found.remarked),
                names=_listed(found.remarked),
            )
        )
    if found.words:
        sentences.append(msg("its own tokenization"))
    if found.ends:
        sentences.append(msg("ends answers with {names}", names=_listed(found.ends)))
    if found.settings:
        sentences.append(msg("its own generation settings, which exports include"))
    return sentences


def _tokens(ours: Tokenizer, theirs: Tokenizer) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...], tuple[str, ...]]:
    """Tokens that were added, renamed (base's name, adapter's name), or changed between special and plain."""
    mine, its = ours.names(), theirs.names()
    added = tuple(mine[i] for i in sorted(mine.keys() - its.keys()))
    renamed = tuple((its[i], mine[i]) for i in sorted(mine.keys() & its.keys()) if mine[i] != its[i])
    same = (i for i in mine.keys() & its.keys() if mine[i] == its[i])
    remarked = tuple(mine[i] for i in sorted(same) if ours.is_left_out(i) != theirs.is_left_out(i))
    return added, renamed, remarked


def _same_settings(one: Path, other: Path) -> bool:
    """Whether two folders have the same generation settings, apart from token ids and versions."""
    compared = [
        {k: v for k, v in generation_settings(folder).items() if k not in _NO_SETTINGS and not k.endswith("_token_id")}
        for folder in (one, other)
    ]
    return compared[0] == compared[1]


def _rendered(tokenizer: Tokenizer, chat: Sequence[Message]) -> str | None:
    try:
        return tokenizer.render(chat, chat[-1].role == "user")
    except RowRejected:
        return None


def _listed(names: Sequence[str]) -> str:
    more = msg(" and {count} more", count=len(names) - _NAMED) if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _brings_other_bytes(base: Path, adapter: Path) -> bool:
    """Whether the adapter's folder has a file that differs from the base's byte by byte."""
    return _other_bytes(base, adapter, stamp(base, *TRAVEL), stamp(adapter, *TRAVEL))


@lru_cache(maxsize=256)
def _other_bytes(base: Path, adapter: Path, _base: object, _own: object) -> bool:
    return any(not _same(base / name, adapter / name) for name in brought(adapter))


def _same(one: Path, other: Path) -> bool:
    try:
        return one.stat().st_size == other.stat().st_size and one.read_bytes() == other.read_bytes()
    except OSError:
        return False


@lru_cache(maxsize=8)
def _tokenizer(base: Path, adapter: Path | None, _base: object, _own: object) -> Tokenizer:
    from finetune_local.data.tokenizers.tokenizer import Tokenizer

    return Tokenizer.load(base, adapter)


@dataclass(frozen=True)
class Stops:
    """The token ids that end an answer, the one this model learned first. `token` becomes the tokenizer's eos_token; None keeps the old one."""

    ids: tuple[int, ...]
    token: str | None = None


def stops_of(setup: PromptSetup) -> Stops:
    """The end tokens of a base with an adapter."""
    tokenizer = setup.tokenizer
    own_end = None if setup.raw else tokenizer.turn_end_id
    first = tokenizer.eos_id if own_end is None else own_end
    ids = (first, *sorted(tokenizer.stop_ids - {first}))
    template = setup.template or ""
    # A template that renders eos_token would render a different text if the token were changed.
    keep = first == tokenizer.eos_id or re.search(r"\beos_token\b", template)
    return Stops(ids, None if keep else tokenizer.token(first))


def eos(stops: tuple[int, ...]) -> int | list[int]:
    """The ids in the form of config.json and generation_config.json: a number, or a list."""
    return stops[0] if len(stops) == 1 else list(stops)


def copy_files(setup: PromptSetup, folder: Path) -> None:
    """Copy the effective tokenizer, template and generation settings: the adapter's own, or the default template used in training on a
    base without one. Raises ModelError."""
    for name, path in setup.files.items():
        shutil.copyfile(path, folder / name)
    if setup.template is not None and setup.template != template_of(folder):
        (folder / TEMPLATE).write_text(setup.template, "utf-8", newline="\n")


def write_beside_adapter(setup: PromptSetup, config: Mapping[str, Any], folder: Path) -> None:
    """Copy the same files beside an adapter's weights, with its end tokens, so that the folder alone is enough to prompt it.

    `config` is the base's. Values the base already has are copied unchanged. Raises ModelError.
    """
    copy_files(setup, folder)
    stops = stops_of(setup)
    if not set(stops.ids) <= set(ends_in(generation_settings(folder))):
        write_stops(folder, stops, config)


def write_stops(folder: Path, stops: Stops, config: Mapping[str, Any]) -> None:
    """Write the end tokens into the files of a merged folder; `config` is its config.json. Raises ModelError for a damaged file."""
    generation = read_optional_config(folder / GENERATION)
    if generation is None:
        generation = {key: config[key] for key in ("bos_token_id", "pad_token_id") if config.get(key) is not None}
    _write(folder / GENERATION, {**generation, "eos_token_id": eos(stops.ids)})
    if stops.token is None:
        return
    for name in (CONFIG, SPECIAL):
        if (values := read_optional_config(folder / name)) is not None:
            _write(folder / name, {**values, "eos_token": stops.token})


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8", newline="\n")
