"""The files by which other programs ask as the app asks, written beside merged weights and beside an adapter.

The tokens that end an answer stand in every file that names one, the turn's own end first: a base whose end-of-text token is not
what its chat template puts after an answer learns to end on the latter, and a program that stops at the former alone would go on
to its limit.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_local.adapters.companions import Asking
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
    """`ids` end an answer, the one that this model learned first. `token` becomes the tokenizer's eos_token; None leaves that."""

    ids: tuple[int, ...]
    token: str | None = None


def stops_of(asked: Asking) -> Stops:
    """What ends an answer of a base with an adapter on it."""
    tokenizer = asked.tokenizer
    own_end = None if asked.raw else tokenizer.turn_end_id
    first = tokenizer.eos_id if own_end is None else own_end
    ids = (first, *sorted(tokenizer.stop_ids - {first}))
    template = asked.template or ""
    # A template that writes the tokenizer's eos_token would write another text if that were changed.
    keep = first == tokenizer.eos_id or re.search(r"\beos_token\b", template)
    return Stops(ids, None if keep else tokenizer.token(first))


def eos(stops: tuple[int, ...]) -> int | list[int]:
    """As config.json and generation_config.json spell it."""
    return stops[0] if len(stops) == 1 else list(stops)


def copy_files(asked: Asking, folder: Path) -> None:
    """The tokenizer, template and generation settings in force: an adapter's own, or the stand-in that was trained with on a base
    without a template. Raises ModelError."""
    for name, path in asked.files.items():
        shutil.copyfile(path, folder / name)
    if asked.template is not None and asked.template != template_of(folder):
        (folder / TEMPLATE).write_text(asked.template, "utf-8", newline="\n")


def write_beside_adapter(asked: Asking, config: Mapping[str, Any], folder: Path) -> None:
    """The same beside an adapter's weights, with the tokens that end its answers: its folder alone then says how it is asked.

    `config` is the base's. What the base says already is copied as it is, so that nothing differs from it that need not. Raises ModelError.
    """
    copy_files(asked, folder)
    stops = stops_of(asked)
    if not set(stops.ids) <= set(ends_in(generation_settings(folder))):
        write_stops(folder, stops, config)


def write_stops(folder: Path, stops: Stops, config: Mapping[str, Any]) -> None:
    """Put them into the files of a merged folder; `config` is its config.json. Raises ModelError for a damaged file."""
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
