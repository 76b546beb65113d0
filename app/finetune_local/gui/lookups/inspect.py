"""The lookup of data files for the data page (data/inspect.py): a few rows at once, or statistics of all rows, which may take a while.

The request's values are `settings` (those of [data]), `model` (as --model takes it, or ""), `objective`, and `what`: "rows", with `first`,
`count` and `row`, whose tokens are included; or "all". A cancelled inspection of all rows resumes when the same request is repeated.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from finetune_local.data.inspect import Inspection
from finetune_local.data.tokenizers.tokenizer import Tokenizer
from finetune_local.models.resolve import find
from finetune_local.runtime.rpc import RpcRequest
from finetune_local.spec import defaults
from finetune_local.spec.run import DEFAULT_OBJECTIVE, DataSettings, RunSpec
from finetune_local.system.errors import ModelError, ModelNotFound
from finetune_local.system.fields import parse
from finetune_local.system.messages import message_of
from finetune_local.system.paths import Home, located

SAMPLE_ROWS = 2000
"""Number of rows after which preliminary statistics are sent, while the rest is read."""

PROGRESS_SECONDS = 0.4
NO_TOKENIZER_LENGTH = 1 << 20
"""The context length that is assumed without a model."""

_KEPT_TOKENIZERS = 2

_tokenizers: dict[tuple[str, float], _Loaded] = {}
"""By the path and modification time of a model's folder."""

_inspections: dict[str, tuple[Inspection, Iterator[float]]] = {}
"""The last inspection of all rows, finished or cancelled, by its request."""


def answer(request: RpcRequest, home: Home) -> Mapping[str, Any]:
    """JSON values: "model", "model_problem", "model_missing", and those of Inspection.shown() or as_json(). Raises DataError."""
    values = request.values
    settings = parse(DataSettings, values["settings"], "data")
    loaded = _load(str(values.get("model") or ""), home)
    tokenizer = loaded.tokenizer
    length, _ = defaults.max_length(RunSpec(data=settings), loaded.context_length)
    model = {
        "model": str(values.get("model") or "") if tokenizer else "",
        "model_problem": loaded.problem,
        "model_missing": loaded.missing,
    }
    if values["what"] == "rows":
        return model | _rows(settings, tokenizer, length, values)
    return model | _all(request, settings, tokenizer, length, model)


def _rows(
    settings: DataSettings, tokenizer: Tokenizer | None, length: int, values: Mapping[str, Any]
) -> dict[str, object]:
    first, count, row = int(values["first"]), int(values["count"]), int(values["row"])
    objective = _objective(values)
    look = Inspection(
        settings, tokenizer, length, first=first, count=count, masked={row}, only_these=True, objective=objective
    )
    for _ in look.steps():
        if look.readable > max(first + count, row):
            break
    return look.shown()


def _all(
    request: RpcRequest, settings: DataSettings, tokenizer: Tokenizer | None, length: int, model: Mapping[str, object]
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
    if key not in _inspections:
        _inspections.clear()
        look = Inspection(settings, tokenizer, length, objective=_objective(request.values))
        _inspections[key] = look, look.steps()
    look, steps = _inspections[key]
    sent = look.rows_read >= SAMPLE_ROWS
    when = time.monotonic()
    for share in steps:
        if not sent and look.rows_read >= SAMPLE_ROWS:
            sent = True
            request.send("sample", found={**model, **look.as_json()})
        if time.monotonic() - when > PROGRESS_SECONDS:
            when = time.monotonic()
            request.send("progress", done=share)
        if request.cancelled():
            break
    return look.as_json()


def _objective(values: Mapping[str, Any]) -> str:
    return str(values.get("objective") or DEFAULT_OBJECTIVE)


def _stamps(settings: DataSettings) -> list[object]:
    """Size and time of each data file, which change with the file."""
    found: list[object] = []
    for name in (*settings.files, *settings.validation_files):
        try:
            state = located(name).stat()
        except OSError:
            found.append(None)
        else:
            found.append([state.st_size, state.st_mtime_ns])
    return found


@dataclass(frozen=True)
class _Loaded:
    """A model's tokenizer and its context length in tokens; or no tokenizer, and why."""

    tokenizer: Tokenizer | None
    context_length: int = NO_TOKENIZER_LENGTH
    problem: str = ""
    missing: bool = False
    """Whether the model is not installed."""


def _load(model: str, home: Home) -> _Loaded:
    """The tokenizer of a model; none for ""."""
    if not model:
        return _Loaded(None)
    try:
        folder = find(model, home)
        key = (str(folder.path), folder.path.stat().st_mtime)
        if key not in _tokenizers:
            while len(_tokenizers) >= _KEPT_TOKENIZERS:
                _tokenizers.pop(next(iter(_tokenizers)))
            _tokenizers[key] = _Loaded(Tokenizer.load(folder.path), folder.context_length)
    except ModelError as error:
        return _Loaded(None, problem=message_of(error), missing=isinstance(error, ModelNotFound))
    return _tokenizers[key]
