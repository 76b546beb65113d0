"""What is in data files (data/inspect.py), for the data page: some rows at once, or all that there is to know, which may take a while.

Values: `settings` (those of [data]), `model` (as --model takes it; "" for none), `objective`, `what` ("rows" or "all"), and for rows `first`,
`count`, and `row`, whose tokens are wanted. A look at all that was left goes on where it was when the same is asked again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

from finetune_local.data.inspect import Inspection
from finetune_local.data.tokenizers.tokenizer import Tokenizer
from finetune_local.models.resolve import find
from finetune_local.runtime.rpc import RpcRequest
from finetune_local.spec import defaults
from finetune_local.spec.run import DEFAULT_OBJECTIVE, DataSettings, RunSpec
from finetune_local.system.errors import ModelError
from finetune_local.system.fields import parse
from finetune_local.system.messages import message_of
from finetune_local.system.paths import Home, located

SAMPLE_ROWS = 2000
"""After so many rows what was found is told, while the rest is read."""

TELL_SECONDS = 0.4
NO_TOKENIZER_LENGTH = 1 << 20
_KEPT_TOKENIZERS = 2

_tokenizers: dict[tuple[str, float], tuple[Tokenizer, int]] = {}
_left: dict[str, tuple[Inspection, Iterator[float]]] = {}
"""The one look that was left, or finished, by what was asked."""


def answer(request: RpcRequest, home: Home) -> Mapping[str, Any]:
    """Plain values: "model" and "model_problem", and what Inspection.shown() or as_json() has."""
    asked = request.values
    settings = parse(DataSettings, asked["settings"], "data")
    tokenizer, context, problem = _tokenizer(str(asked.get("model") or ""), home)
    length, _ = defaults.max_length(RunSpec(data=settings), context)
    told = {"model": str(asked.get("model") or "") if tokenizer else "", "model_problem": problem}
    if asked["what"] == "rows":
        return told | _rows(settings, tokenizer, length, asked)
    return _all(request, settings, tokenizer, length, told)


def _rows(
    settings: DataSettings, tokenizer: Tokenizer | None, length: int, asked: Mapping[str, Any]
) -> dict[str, object]:
    first, count, row = int(asked["first"]), int(asked["count"]), int(asked["row"])
    objective = _objective(asked)
    look = Inspection(
        settings, tokenizer, length, first=first, count=count, masked={row}, only_these=True, objective=objective
    )
    for _ in look.steps():
        if look.readable > max(first + count, row):
            break
    return look.shown()


def _all(
    request: RpcRequest, settings: DataSettings, tokenizer: Tokenizer | None, length: int, beside: Mapping[str, Any]
) -> dict[str, object]:
    key = json.dumps(
        [
            settings.model_dump(),
            _objective(request.values),
            request.values.get("model"),
            tokenizer is not None,
            length,
            _stamps(settings),
        ]
    )
    if key not in _left:
        _left.clear()
        look = Inspection(settings, tokenizer, length, objective=_objective(request.values))
        _left[key] = look, look.steps()
    look, steps = _left[key]
    told = look.rows_read >= SAMPLE_ROWS
    when = time.monotonic()
    for share in steps:
        if not told and look.rows_read >= SAMPLE_ROWS:
            told = True
            request.send("sample", found={**beside, **look.as_json()})
        if time.monotonic() - when > TELL_SECONDS:
            when = time.monotonic()
            request.send("progress", done=share)
        if request.cancelled():
            break
    return {**beside, **look.as_json()}


def _objective(asked: Mapping[str, Any]) -> str:
    return str(asked.get("objective") or DEFAULT_OBJECTIVE)


def _stamps(settings: DataSettings) -> list[object]:
    """Others where a file has changed."""
    found: list[object] = []
    for name in (*settings.files, *settings.validation_files):
        try:
            state = located(name).stat()
        except OSError:
            found.append(None)
        else:
            found.append([state.st_size, state.st_mtime_ns])
    return found


def _tokenizer(model: str, home: Home) -> tuple[Tokenizer | None, int, str]:
    """The tokenizer of a model on this machine and its context length, or None and the sentence that says why."""
    if not model:
        return None, NO_TOKENIZER_LENGTH, ""
    try:
        folder = find(model, home)
        key = (str(folder.path), folder.path.stat().st_mtime)
        if key not in _tokenizers:
            while len(_tokenizers) >= _KEPT_TOKENIZERS:
                _tokenizers.pop(next(iter(_tokenizers)))
            _tokenizers[key] = Tokenizer.load(folder.path), folder.context_length
    except ModelError as error:
        return None, NO_TOKENIZER_LENGTH, message_of(error)
    tokenizer, context = _tokenizers[key]
    return tokenizer, context, ""
