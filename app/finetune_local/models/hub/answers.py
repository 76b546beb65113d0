"""A hub's responses, bounded in size and checked in type, whichever server sent them.

API: https://huggingface.co/docs/hub/api (GET /api/models, /api/models/{id}/revision/{revision}).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from finetune_local.models.hub.http_file import RemoteFile
from finetune_local.system.messages import msg
from finetune_local.system.paths import bad_name
from finetune_local.system.untrusted.text import ForeignTextError, is_text, parse_json

MOST_BYTES = 32 * 2**20
_MOST_FILES, _MOST_HITS = 50_000, 1_000
_LARGEST_FILE = 2**50
_LONGEST_WORD = 200


@dataclass(frozen=True)
class Repository:
    """One revision of a repository: its commit, the license's short name, and its top-level files."""

    commit: str
    license: str | None
    files: tuple[RemoteFile, ...]


@dataclass(frozen=True)
class Listed:
    """A model in a search result. Missing or mistyped fields are empty."""

    name: str
    config: Mapping[str, Any]
    tags: frozenset[str]
    library: str
    gated: bool
    parameters: int | None
    updated: str
    downloads: int


def read_answer(chunks: Iterable[bytes]) -> Any:
    """A response body as JSON. Raises ForeignTextError."""
    content = bytearray()
    for chunk in chunks:
        content += chunk
        if len(content) > MOST_BYTES:
            raise ForeignTextError(
                msg("it is larger than {size} MB, too large for such a response", size=f"{MOST_BYTES / 1e6:.0f}")
            )
    return parse_json(bytes(content))


def repository_in(answer: Any) -> Repository:
    """One repository's description. Raises ForeignTextError."""
    fields = answer if isinstance(answer, dict) else {}
    commit, siblings, card = fields.get("sha"), fields.get("siblings"), fields.get("cardData")
    if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-zA-Z]{1,64}", commit):
        raise ForeignTextError(msg("no 'sha'"))
    if not isinstance(siblings, list) or len(siblings) > _MOST_FILES:
        raise ForeignTextError(msg("no 'siblings'"))
    files: dict[str, RemoteFile] = {}
    for entry in siblings:
        name = entry.get("rfilename") if isinstance(entry, dict) else None
        if not isinstance(name, str):
            raise ForeignTextError(msg("no 'rfilename'"))
        # Files in subfolders are skipped, and so are names that would be paths on some system.
        if is_text(name) and bad_name(name) is None:
            if name in files:
                raise ForeignTextError(msg("the file {name} twice", name=name))
            files[name] = _file(name, entry)
    license_name = card.get("license") if isinstance(card, dict) else None
    return Repository(commit, _word(license_name) or None, tuple(files.values()))


def models_in(answer: Any) -> Iterator[Listed]:
    """The models of a list; entries without an ORG/NAME are skipped. Raises ForeignTextError if it is no list."""
    if not isinstance(answer, list):
        raise ForeignTextError(msg("no list of models"))
    for entry in answer[:_MOST_HITS]:
        fields = entry if isinstance(entry, dict) else {}
        name = _word(fields.get("id") or fields.get("modelId"))
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII):
            continue
        config, tags, numbers = fields.get("config"), fields.get("tags"), fields.get("safetensors")
        yield Listed(
            name,
            config if isinstance(config, dict) else {},
            frozenset(word for tag in (tags if isinstance(tags, list) else ()) if (word := _word(tag))),
            _word(fields.get("library_name")),
            bool(fields.get("gated")),
            _count(numbers.get("total") if isinstance(numbers, dict) else None) or None,
            _word(fields.get("lastModified"))[:10],
            _count(fields.get("downloads")) or 0,
        )


def hash_in(given: object, digits: int) -> str | None:
    """A hex hash, or None for anything else. Partial files are named after it, so it must never be a path."""
    return given if isinstance(given, str) and re.fullmatch(rf"[0-9a-f]{{{digits}}}", given) else None


def _file(name: str, entry: Mapping[str, Any]) -> RemoteFile:
    lfs = entry.get("lfs")
    large = lfs if isinstance(lfs, dict) else {}
    size = _count(large.get("size") or entry.get("size"))
    if size is None:
        raise ForeignTextError(msg("no 'size' of {name}", name=name))
    sha256 = hash_in(large.get("sha256") or large.get("oid"), 64)
    return RemoteFile(name, size, sha256, None if large else hash_in(entry.get("blobId"), 40))


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < _LARGEST_FILE else None


def _word(value: object) -> str:
    """A short string on one line, else ""."""
    return (
        value
        if isinstance(value, str) and is_text(value) and len(value) <= _LONGEST_WORD and value.isprintable()
        else ""
    )
