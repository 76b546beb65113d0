"""Build a folder's tokenizer with the `tokenizers` library alone, as transformers 5 would; None if only transformers can.

What transformers does between files and ids is in its tokenization_utils_tokenizers.py and tokenization_utils_base.py; the order in
which tokens are added decides their ids. tests/unit/data/test_tokenizer_equal.py compares the two.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing

from finetune_local.data.tokenizers.classes import REBUILT, class_of, plainly_special
from finetune_local.data.tokenizers.settings import MOST_ID, Settings, Token, read_settings
from finetune_local.data.tokenizers.shape import is_known
from finetune_local.spec.base.tokenizer_files import NAMED, TOKENIZER
from finetune_local.system.errors import ModelError
from finetune_local.system.messages import msg, system_reason
from finetune_local.system.untrusted.text import ForeignTextError, kind_of, parse_json_object, read_bounded

MOST_CONFIG_BYTES = 8 * 2**20
_COPY = msg("Copy it again from the model's source.")


@dataclass(frozen=True)
class Files:
    """A folder's parsed files: tokenizer.json, the settings beside it, and the class that reads them."""

    folder: Path
    values: dict[str, Any]
    settings: Settings
    class_name: str

    @property
    def known(self) -> bool:
        """Whether the cost of every part is bounded, so that it may be used in this process."""
        return is_known(self.values, self.class_name in REBUILT)


@dataclass(frozen=True)
class Built:
    """The library's tokenizer, and the texts of its special tokens, named and unnamed."""

    core: Tokenizer
    named: Mapping[str, str]
    extra: tuple[str, ...]


def read_files(folder: Path) -> Files | None:
    """The files, or None if only transformers can read them. Raises ModelError for damaged ones."""
    path = folder / TOKENIZER
    try:
        text = read_bounded(path)
        values = parse_json_object(text)
    except FileNotFoundError:
        return None
    except ForeignTextError as error:
        raise ModelError(msg("{path}: {error}. {copy}", path=path, error=error, copy=_COPY)) from None
    except OSError as error:
        raise ModelError(msg("{path}: {strerror}.", path=path, strerror=system_reason(error))) from None
    settings = read_settings(folder, values.get("added_tokens", []))
    _check_vocabulary(path, values)
    name = class_of(settings, _config(folder), b'"ByteLevel"' in text, folder)
    kind = values["model"].get("type")
    # The classes build BPE anew; for another kind they have other rules.
    return None if name is None or (name in REBUILT and kind != "BPE") else Files(folder, values, settings, name)


def build(files: Files) -> Built:
    """Build the tokenizer. Raises ModelError if the library refuses."""
    try:
        return _built(files.values, files.settings, files.class_name)
    except BaseException as error:  # the library raises bare Exception, and panics that are none
        if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
            raise
        raise _refused(files.folder / TOKENIZER, error) from None


def written(built: Built) -> dict[str, object]:
    """A tokenizer as plain values, the input of from_written()."""
    return {
        "tokenizer": built.core.to_str(),
        "named": dict(built.named),
        "extra": list(built.extra),
        "splits_special": bool(built.core.encode_special_tokens),
    }


def from_written(values: Mapping[str, Any], folder: Path) -> Built:
    """A tokenizer that a guarded child wrote. Raises ModelError."""
    try:
        core = Tokenizer.from_str(values["tokenizer"])
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception
        raise _refused(folder, error) from None
    core.encode_special_tokens = values["splits_special"]
    return Built(core, values["named"], tuple(values["extra"]))


def _refused(place: Path, error: BaseException) -> ModelError:
    reason = " ".join(str(error).split())[:200]
    return ModelError(
        msg("{place}: the tokenizer cannot be built ({error}). {copy}", place=place, error=reason, copy=_COPY)
    )


def _built(values: Mapping[str, Any], settings: Settings, class_name: str) -> Built:
    own = REBUILT.get(class_name)
    named: dict[str, Token | None] = {key: settings.named.get(key) for key in NAMED}
    padding = values.get("padding")
    if own is not None:
        named |= {key: token for key, token in own.defaults.items() if key not in settings.named}
        core = own.build(values["model"]["vocab"], _merges(values["model"]["merges"]), settings)
        small = {"type": "BPE", "vocab": {}, "merges": []}
        shell = {
            **values,
            "model": {**values["model"], **small},
            "added_tokens": [],
            "truncation": None,
            "padding": None,
        }
        core.post_processor = Tokenizer.from_str(json.dumps(shell)).post_processor
    else:
        core = Tokenizer.from_str(json.dumps({**values, "truncation": None, "padding": None}))
    if "pad_token" not in {*settings.named, *(own.defaults if own else ())} and isinstance(padding, dict):
        token = padding.get("pad_token")
        named["pad_token"] = token if isinstance(token, str) else None
    core.encode_special_tokens = settings.splits_special
    every = {**named, **settings.specific}
    core.add_tokens(list(_to_add(core, every, settings)))
    if core.post_processor is None or (own is not None and own.own_ends):
        core.post_processor = TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])
    texts = {key: str(token) for key, token in every.items() if token is not None}
    extra = tuple(str(token) for token in settings.extra)
    if own is not None and own.adds_special:
        core.add_tokens(plainly_special(list(dict.fromkeys([*texts.values(), *extra]))))
    return Built(core, texts, extra)


def _to_add(core: Tokenizer, named: Mapping[str, Token | None], settings: Settings) -> Iterator[AddedToken]:
    """Tokens to add in transformers' order: those with an id in the files, then missing special ones."""
    tokens: list[Token] = [token for _, token in sorted(settings.added.items())]
    there = {token.content for token in core.get_added_tokens_decoder().values()} | {str(token) for token in tokens}
    for token in (*named.values(), *settings.extra):
        if token is not None and str(token) not in there and token not in tokens:
            tokens.append(token)
    names = {str(token) for token in named.values() if token}
    for token in tokens:
        if isinstance(token, str):
            yield AddedToken(token, special=True)
        else:
            if not token.special and str(token) in names:
                token.special = True
            yield token


def _merges(merges: list[Any]) -> list[tuple[str, ...]]:
    return [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges]


def _check_vocabulary(path: Path, values: Mapping[str, Any]) -> None:
    """Raise ModelError if the ids are not valid for a model."""
    model = values.get("model")
    if not isinstance(model, dict):
        raise ModelError(
            msg('{path}: "model" is {kind}, expected an object. {copy}', path=path, kind=kind_of(model), copy=_COPY)
        )
    vocabulary, kind = model.get("vocab"), model.get("type")
    if kind is not None and kind not in ("BPE", "Unigram", "WordLevel", "WordPiece"):
        raise ModelError(msg('{path}: "model" has an unknown type. {copy}', path=path, copy=_COPY))
    if isinstance(vocabulary, dict):
        if set(map(type, vocabulary.values())) - {int} or min(vocabulary.values(), default=0) < 0:
            raise ModelError(
                msg(
                    '{path}: "vocab" has a token id that is not a whole number from 0 up. {copy}', path=path, copy=_COPY
                )
            )
        if (largest := max(vocabulary.values(), default=0)) >= MOST_ID:
            raise ModelError(
                msg(
                    '{path}: "vocab" has the token id {id}, which is too large. {copy}',
                    path=path,
                    id=largest,
                    copy=_COPY,
                )
            )
        if kind == "BPE":
            _check_merges(path, model, vocabulary)
    elif not isinstance(vocabulary, list) or kind == "BPE":
        raise ModelError(
            msg(
                '{path}: "vocab" is {kind}, expected tokens. {copy}',
                path=path,
                kind=kind_of(vocabulary),
                copy=_COPY,
            )
        )


def _check_merges(path: Path, model: Mapping[str, Any], vocabulary: Mapping[str, Any]) -> None:
    """Raise ModelError if a merge does not produce a token, on which the library panics."""
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise ModelError(
            msg('{path}: "merges" is {kind}, expected a list. {copy}', path=path, kind=kind_of(merges), copy=_COPY)
        )
    if model.get("continuing_subword_prefix"):
        return  # what is joined is shorter by it; such a tokenizer is used in the guarded child
    try:
        lost = next(
            (m for m in merges if (m.replace(" ", "") if isinstance(m, str) else "".join(m)) not in vocabulary), ""
        )
    except TypeError:
        raise ModelError(
            msg('{path}: "merges" has an entry that is not a pair of tokens. {copy}', path=path, copy=_COPY)
        ) from None
    if lost:
        raise ModelError(
            msg(
                '{path}: "merges" joins {pair} into a token that "vocab" does not have. {copy}',
                path=path,
                pair=f"{lost!r:.60}",
                copy=_COPY,
            )
        )


def _config(folder: Path) -> Mapping[str, object]:
    """config.json, which names the architecture; empty if it cannot be read."""
    try:
        return parse_json_object(read_bounded(folder / "config.json", MOST_CONFIG_BYTES))
    except (OSError, ForeignTextError):
        return {}
