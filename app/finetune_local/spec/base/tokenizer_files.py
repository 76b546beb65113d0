"""The files that define how a model is prompted: tokenizer, chat template, generation settings.

A base has them; an adapter's folder may bring its own (TRL, Axolotl and LLaMA-Factory save them), which then take precedence:
    an adapter's tokenizer.json is used with the adapter's other tokenizer files; only a missing tokenizer_config.json
        comes from the base;
    without a tokenizer.json, the base's is read with the adapter's tokenizer_config.json, special_tokens_map.json and
        added_tokens.json;
    a chat template and generation settings each replace the base's.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune_local.spec.base.config import read_optional_config
from finetune_local.system.errors import ModelError
from finetune_local.system.files import stamp
from finetune_local.system.messages import msg, system_reason
from finetune_local.system.untrusted.text import ForeignTextError, read_bounded

TOKENIZER, CONFIG = "tokenizer.json", "tokenizer_config.json"
SPECIAL, ADDED = "special_tokens_map.json", "added_tokens.json"
TEMPLATE, GENERATION = "chat_template.jinja", "generation_config.json"
OF_TOKENIZER = (TOKENIZER, CONFIG, SPECIAL, ADDED)
OTHER_FORMS = ("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "spiece.model")
"""The same tokens for older programs: not read here, but copied along with the tokenizer.json beside them."""

TRAVEL = (*OF_TOKENIZER, TEMPLATE, GENERATION, *OTHER_FORMS)
"""Every file that may belong to an adapter beside its weights."""

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The named special tokens, in transformers' order."""

MOST_TEMPLATE_BYTES = 2**20
"""Upper bound on a template; the largest known has 30 kB."""


def brought(folder: Path) -> tuple[str, ...]:
    """The files of an adapter's folder that are read."""
    read = (*OF_TOKENIZER, TEMPLATE, GENERATION)
    return tuple(name for name, known in zip(read, stamp(folder, *read), strict=True) if known is not None)


def copy_brought(folder: Path, target: Path) -> None:
    """Copy the files that belong to an adapter beside its weights, if any."""
    for name in TRAVEL:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)


def in_force(base: Path, adapter: Path | None = None) -> dict[str, Path]:
    """The tokenizer files in effect, by name, without the chat template; other forms of the tokenizer included."""
    own = _there(adapter) if adapter is not None else {}
    found = _there(base)
    if TOKENIZER in own:
        kept = {name: found[name] for name in (CONFIG, GENERATION) if name in found}
        return kept | own
    return found | {name: path for name, path in own.items() if name not in OTHER_FORMS}


def template_in_force(base: Path, adapter: Path | None = None) -> str | None:
    """The chat template in effect: the adapter's, else the base's, else None. Raises ModelError."""
    own = None if adapter is None else template_of(adapter)
    return own if own is not None else template_of(base)


def template_of(folder: Path) -> str | None:
    """A folder's chat template; of several named ones, "default". Raises ModelError."""
    file = folder / TEMPLATE
    try:
        if file.is_file():
            found: Any = read_bounded(file, MOST_TEMPLATE_BYTES).decode("utf-8")
        else:
            found = (read_optional_config(folder / CONFIG) or {}).get("chat_template")
    except UnicodeDecodeError as error:
        raise ModelError(
            msg("{path}: it is not UTF-8 text (byte {byte}). Copy it again.", path=file, byte=error.start)
        ) from None
    except ForeignTextError as error:
        raise ModelError(msg("{path}: {error}. Copy it again.", path=file, error=error)) from None
    except OSError as error:
        raise ModelError(msg("{file}: {strerror}.", file=file, strerror=system_reason(error))) from None
    if isinstance(found, list):
        found = next((t.get("template") for t in found if isinstance(t, dict) and t.get("name") == "default"), None)
    elif isinstance(found, dict):
        found = found.get("default")
    return found if isinstance(found, str) and found.strip() else None


def generation_settings(folder: Path) -> Mapping[str, Any]:
    """A folder's generation_config.json; empty if there is none. Raises ModelError."""
    return read_optional_config(folder / GENERATION) or {}


def ends_in(values: Mapping[str, Any]) -> list[int]:
    """The ids of `eos_token_id`, which is one id or a list."""
    found = values.get("eos_token_id")
    listed = found if isinstance(found, list) else [found]
    return [i for i in listed if isinstance(i, int) and not isinstance(i, bool) and i >= 0]


def added_by_config(files: Mapping[str, Path]) -> dict[int, Mapping[str, Any]]:
    """Tokens by id that tokenizer_config.json or added_tokens.json add, with "content" and "special". Raises ModelError."""
    found: dict[int, Mapping[str, Any]] = {}
    for name in (CONFIG, ADDED):
        values = read_optional_config(files[name]) if name in files else None
        if values is None:
            continue
        if name == CONFIG:
            listed = values.get("added_tokens_decoder")
            given = listed.items() if isinstance(listed, dict) else ()
        else:
            given = {str(i): {"content": text, "special": True} for text, i in values.items()}.items()
        for key, token in given:
            if key.isdecimal() and len(key) < 10 and isinstance(token, dict) and isinstance(token.get("content"), str):
                found.setdefault(int(key), token)
    return found


@contextmanager
def joined(base: Path, adapter: Path | None) -> Iterator[Path]:
    """A folder with the files in effect together, as if a model had been saved with them; the base's own if nothing is brought.

    Raises ModelError.
    """
    if adapter is None or not brought(adapter):
        yield base
        return
    with tempfile.TemporaryDirectory(prefix="finetune-local-tokenizer-") as name:
        place = Path(name)
        if (base / "config.json").is_file():
            shutil.copyfile(base / "config.json", place / "config.json")
        for file, path in in_force(base, adapter).items():
            if file not in OTHER_FORMS:
                shutil.copyfile(path, place / file)
        if template := template_in_force(base, adapter):
            (place / TEMPLATE).write_text(template, "utf-8", newline="\n")
        yield place


def _there(folder: Path) -> dict[str, Path]:
    names = (*OF_TOKENIZER, GENERATION, *OTHER_FORMS)
    return {name: folder / name for name in names if (folder / name).is_file()}
