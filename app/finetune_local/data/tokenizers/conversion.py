"""A tokenizer that only transformers can read, such as a SentencePiece file: converted once, in a guarded child.

The only file of the app that imports transformers, and only in that child: the import takes seconds and half a gigabyte.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from finetune_local.system.errors import ModelError
from finetune_local.system.messages import message_of, msg, system_reason
from finetune_local.system.untrusted.guarded import Guarded, GuardedError, Limits, Setup
from finetune_local.system.untrusted.text import ForeignTextError, parse_json_object, read_bounded

SECONDS = 120.0
"""CPU seconds to import transformers and convert; twenty are usual."""

_FORMS = ("tokenizer.json", "*.model", "*vocab*", "*.tiktoken", "tekken.json", "merges.txt")
"""Names of files that contain a tokenizer."""

_TEXTS = (".json", ".jinja", ".txt", ".model", ".tiktoken")
_KEPT = 2
_read: dict[str, dict[str, Any]] = {}
"""The last conversion, keyed by its input: an export opens the same tokenizer three times."""

_LIMITS = Limits(SECONDS, 6 * 10**9, by_address=False)


def converted(folder: Path) -> dict[str, object]:
    """The input of build.from_written(), and whether its cost is bounded ("known"). Raises ModelError."""
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError as error:
        raise ModelError(msg("{folder}: {strerror}.", folder=folder, strerror=system_reason(error))) from None
    if not any(fnmatch(name, form) for name in names for form in _FORMS):
        raise _missing(folder, msg("no tokenizer.json"))
    key = _digest(folder, names)
    if key in _read:
        return _read[key]
    child = Guarded("finetune_local.data.tokenizers.conversion", _LIMITS)
    try:
        reply: dict[str, Any] = child.ask(str(folder), Setup(""))
    except GuardedError as error:
        raise _missing(folder, message_of(error)) from None
    finally:
        child.close()
    if not reply["fast"]:
        raise ModelError(
            msg(
                "{folder}: this tokenizer has no fast version. Add the model's tokenizer.json to the folder.",
                folder=folder,
            )
        )
    while len(_read) >= _KEPT:
        _read.pop(next(iter(_read)))
    _read[key] = reply
    return reply


def _digest(folder: Path, names: list[str]) -> str:
    """Digest of every file a tokenizer can be read from: everything but weights."""
    digest = hashlib.sha256()
    for name in sorted(names):
        if name.endswith(_TEXTS):
            digest.update(f"{name}\0".encode("utf-8", "surrogateescape"))
            with suppress(OSError, ForeignTextError):  # what cannot be read here is transformers' to refuse
                content = read_bounded(folder / name)
                digest.update(f"{len(content)}\0".encode())
                digest.update(content)
    return digest.hexdigest()


def _missing(folder: Path, why: str) -> ModelError:
    return ModelError(
        msg(
            "{folder}: the tokenizer cannot be loaded ({error}). The folder needs tokenizer.json (or "
            "tokenizer.model) and tokenizer_config.json; copy them from the model's source.",
            folder=folder,
            error=why,
        )
    )


def prepare(setup: str) -> str:
    """Nothing to prepare."""
    return setup


def answer(prepared: str, request: str) -> dict[str, object]:
    """In the child: a folder's tokenizer as transformers reads it, from files only; no code in the folder is run."""
    from transformers import AutoTokenizer

    from finetune_local.data.tokenizers.shape import is_known

    del prepared
    hf = AutoTokenizer.from_pretrained(request, local_files_only=True, trust_remote_code=False)
    if not getattr(hf, "is_fast", False):
        return {"fast": False}
    text = hf.backend_tokenizer.to_str()
    return {
        "fast": True,
        "tokenizer": text,
        "named": hf.special_tokens_map,
        "extra": hf.extra_special_tokens,
        "splits_special": bool(hf.split_special_tokens),
        "known": is_known(parse_json_object(text), rebuilt=False),
    }
