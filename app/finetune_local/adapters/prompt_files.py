"""Tokenizer, chat template and generation settings, written beside merged weights and beside an adapter, so that other programs
prompt the model as the app does.

Every file that names an end token gets all of them, the end of a turn first. Where a base's end-of-text token is not what its chat
template puts after an answer, the model learns to end with the latter, and a program that stops only at the former would run to its
limit.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_local.adapters.companions import PromptSetup
from finetune_local.spec.base.config import read_optional_config
from finetune_local.spec.base.tokenizer_files import (
    CONFIG,
    GENERATION,
    SPECIAL,
    TEMPLATE,
    ends_in,
    generation_settings,
    template_of,
)


@dataclass(frozen=True)
class Stops:
    """The token ids that end an answer, the one this model learned first. `token` becomes the tokenizer's eos_token; None keeps the old one."""

    ids: tuple[int, ...]
    token: str | None = None


def stops_of(asked: PromptSetup) -> Stops:
    """The end tokens of a base with an adapter."""
    tokenizer = asked.tokenizer
    own_end = None if asked.raw else tokenizer.turn_end_id
    first = tokenizer.eos_id if own_end is None else own_end
    ids = (first, *sorted(tokenizer.stop_ids - {first}))
    template = asked.template or ""
    # A template that renders eos_token would render a different text if the token were changed.
    keep = first == tokenizer.eos_id or re.search(r"\beos_token\b", template)
    return Stops(ids, None if keep else tokenizer.token(first))


def eos(stops: tuple[int, ...]) -> int | list[int]:
    """The ids in the form of config.json and generation_config.json: a number, or a list."""
    return stops[0] if len(stops) == 1 else list(stops)


def copy_files(asked: PromptSetup, folder: Path) -> None:
    """Copy the effective tokenizer, template and generation settings: the adapter's own, or the default template used in training on a
    base without one. Raises ModelError."""
    for name, path in asked.files.items():
        shutil.copyfile(path, folder / name)
    if asked.template is not None and asked.template != template_of(folder):
        (folder / TEMPLATE).write_text(asked.template, "utf-8", newline="\n")


def write_beside_adapter(asked: PromptSetup, config: Mapping[str, Any], folder: Path) -> None:
    """Copy the same files beside an adapter's weights, with its end tokens, so that the folder alone tells how to prompt it.

    `config` is the base's. Values the base already has are copied unchanged. Raises ModelError.
    """
    copy_files(asked, folder)
    stops = stops_of(asked)
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
