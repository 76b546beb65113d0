"""tokenizer_config.json and the older files beside it as one record, read as transformers 5 reads them.

special_tokens_map.json and added_tokens.json apply only if tokenizer_config.json has no "added_tokens_decoder"; tokenizer.json's added
tokens apply too then. Chat templates are read by spec/base/tokenizer_files.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from finetune_local.spec.base.config import read_optional_config
from finetune_local.spec.base.tokenizer_files import ADDED, CONFIG, NAMED, SPECIAL
from finetune_local.system.errors import ModelError
from finetune_local.system.messages import msg
from finetune_local.system.untrusted.text import is_text, kind_of

Token = str | AddedToken

MOST_ID = 2**24
"""Larger than any vocabulary; ids are 32-bit in the training data."""

MOST_TOKENS = 2**20
MOST_CHARACTERS = 4096
_EXTRA, _OLD_EXTRA = "extra_special_tokens", "additional_special_tokens"
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class Settings:
    """`named` has the given tokens of NAMED, None if a file says null; `specific` those under other names, such as image_token."""

    class_name: str | None
    from_code: bool
    """Whether the folder needs its own code to read the tokenizer."""
    named: Mapping[str, Token | None]
    specific: Mapping[str, Token]
    extra: tuple[Token, ...]
    added: Mapping[int, AddedToken]
    add_prefix_space: bool | None
    legacy: bool
    splits_special: bool
    changes_pattern: bool
    """Whether a pattern is to be replaced ("fix_mistral_regex")."""
    other_file: bool
    """Whether another file than tokenizer.json is named for some version of transformers."""


def read_settings(folder: Path, in_tokenizer: Any) -> Settings:
    """Read a folder's files; `in_tokenizer` are the "added_tokens" of its tokenizer.json. Raises ModelError."""
    path = folder / CONFIG
    values = read_optional_config(path) or {}
    if _OLD_EXTRA in values and not values.get(_EXTRA):
        values[_EXTRA] = values.pop(_OLD_EXTRA)
    specific = {
        key: values.pop(key)
        for key in list(values)
        if key.endswith("_token") and key not in NAMED and isinstance(values[key], str)
    }
    if isinstance(values.get(_EXTRA), dict):
        specific |= values.pop(_EXTRA)
    if "added_tokens_decoder" in values:
        added = dict(_decoder(path, values["added_tokens_decoder"]))
    else:
        specific |= _older(folder / SPECIAL, values)
        added = _old_added(folder / ADDED, values) | dict(_listed(folder / "tokenizer.json", in_tokenizer))
    by_content = {token.content: token for token in added.values()}

    def known(key: str, value: Any) -> Token | None:
        token = _token(path, key, value)
        return by_content.get(token.content if isinstance(token, AddedToken) else token, token) if token else token

    specific = {k: v for k, v in values.items() if k.endswith("_token") and k not in NAMED and _is_token(v)} | specific
    extra = values.get(_EXTRA, values.get(_OLD_EXTRA))
    if not isinstance(extra, (list, type(None))):
        raise ModelError(
            msg(
                '{path}: "{key}" is {kind}, expected a list of texts. Copy it again.',
                path=path,
                key=_EXTRA,
                kind=kind_of(extra),
            )
        )
    name = values.get("tokenizer_class")
    return Settings(
        class_name=name if isinstance(name, str) and name else None,
        from_code="auto_map" in values,
        named={key: known(key, values[key]) for key in NAMED if key in values},
        specific={key: t for key, value in specific.items() if (t := _token(path, key, value)) is not None},
        extra=tuple(t for value in extra or [] if (t := _token(path, _EXTRA, value)) is not None),
        added=added,
        add_prefix_space=_flag(path, values, "add_prefix_space"),
        legacy=bool(values.get("legacy")),
        splits_special=bool(_flag(path, values, "split_special_tokens")),
        changes_pattern=bool(values.get("fix_mistral_regex")),
        other_file="fast_tokenizer_files" in values,
    )


def _older(path: Path, values: dict[str, Any]) -> dict[str, object]:
    """Override tokenizer_config.json's tokens by special_tokens_map.json's; returns model-specific names."""
    specific: dict[str, Any] = {}
    for key, value in (read_optional_config(path) or {}).items():
        if key == _EXTRA and isinstance(value, list):
            before = values.get(_EXTRA) or []
            values[_EXTRA] = [*before, *(v for v in value if v not in before)] if isinstance(before, list) else before
        elif key == _EXTRA and isinstance(value, dict):
            specific |= value
        elif isinstance(value, dict):
            values[key] = {**value, "special": True, "__type": "AddedToken"}
        else:
            values[key] = value
    return specific


def _old_added(path: Path, values: Mapping[str, Any]) -> dict[int, AddedToken]:
    extra = values.get(_EXTRA)
    special = {_content(values.get(key)) for key in NAMED}
    special |= {_content(value) for value in (extra if isinstance(extra, list) else ())}
    found: dict[int, AddedToken] = {}
    for content, index in (read_optional_config(path) or {}).items():
        _checked(path, content, content)
        is_special = content in special
        found[_id(path, index)] = AddedToken(content, normalized=not is_special, special=is_special)
    return found


def _decoder(path: Path, values: Any) -> Iterator[tuple[int, AddedToken]]:
    if not isinstance(values, dict) or len(values) > MOST_TOKENS:
        raise ModelError(
            msg(
                '{path}: "added_tokens_decoder" is {kind}, expected an object of tokens by id. Copy it again.',
                path=path,
                kind=kind_of(values),
            )
        )
    for key, value in values.items():
        index = int(key) if key.isascii() and key.isdecimal() and len(key) < 12 else key
        token = _token(path, "added_tokens_decoder", value)
        if not isinstance(token, AddedToken):
            raise ModelError(
                msg(
                    '{path}: "added_tokens_decoder" has no token at {value}. Copy it again.',
                    path=path,
                    value=_short(key),
                )
            )
        yield _id(path, index), token


def _listed(path: Path, values: Any) -> Iterator[tuple[int, AddedToken]]:
    """The added tokens of tokenizer.json."""
    if not isinstance(values, list) or len(values) > MOST_TOKENS:
        raise ModelError(
            msg(
                '{path}: "added_tokens" is {kind}, expected a list of tokens. Copy it again.',
                path=path,
                kind=kind_of(values),
            )
        )
    for value in values:
        token = (
            _token(path, "added_tokens", {k: v for k, v in value.items() if k != "id"})
            if isinstance(value, dict)
            else None
        )
        if not isinstance(token, AddedToken):
            raise ModelError(
                msg(
                    '{path}: "added_tokens" contains {kind}, expected tokens. Copy it again.',
                    path=path,
                    kind=kind_of(value),
                )
            )
        yield _id(path, value.get("id")), token


def _token(path: Path, key: str, value: Any) -> Token | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        _checked(path, key, value)
        return str(value)
    content = value.get("content")
    _checked(path, key, content)
    flags = {name: value[name] for name in _FLAGS if value.get(name) is not None}
    if not all(isinstance(flag, bool) for flag in flags.values()):
        raise ModelError(
            msg(
                '{path}: token {token} of "{key}" has a flag that is not true or false. Copy it again.',
                path=path,
                token=_short(content),
                key=key,
            )
        )
    return AddedToken(content, **flags)


def _checked(path: Path, key: str, value: Any) -> None:
    if not isinstance(value, str):
        raise ModelError(
            msg(
                '{path}: "{key}" is {kind}, expected the text of a token. Copy it again.',
                path=path,
                key=_bare(key),
                kind=kind_of(value),
            )
        )
    if not is_text(value) or len(value) > MOST_CHARACTERS:
        raise ModelError(
            msg(
                '{path}: "{key}" is not a token: {value}. Copy it again.',
                path=path,
                key=_bare(key),
                value=_short(value),
            )
        )


def _id(path: Path, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < MOST_ID:
        raise ModelError(msg("{path}: {value} is not a token id. Copy it again.", path=path, value=_short(value)))
    return value


def _is_token(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and value.get("__type") == "AddedToken")


def _content(value: Any) -> str:
    return str(value.get("content")) if isinstance(value, dict) else str(value)


def _flag(path: Path, values: Mapping[str, Any], key: str) -> bool | None:
    value = values.get(key)
    if value is not None and not isinstance(value, bool):
        raise ModelError(
            msg(
                '{path}: "{key}" is {kind}, expected true or false. Copy it again.',
                path=path,
                key=key,
                kind=kind_of(value),
            )
        )
    return value


def _bare(key: str) -> str:
    return _short(key)[1:-1]


def _short(value: object) -> str:
    text = repr(value).encode("ascii", "backslashreplace").decode() if isinstance(value, str) else str(value)[:60]
    return text if len(text) <= 60 else text[:59] + "…"
