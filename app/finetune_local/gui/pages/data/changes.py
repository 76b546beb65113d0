"""What a press on the Data page makes of the window's settings of [data]."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from finetune_local.data.readers import kept
from finetune_local.data.readers.detect import examine
from finetune_local.gui.pages.data import forms
from finetune_local.gui.pages.data.state import DataState
from finetune_local.spec.objectives import Objective
from finetune_local.spec.run import DataSettings
from finetune_local.system import paths
from finetune_local.system.errors import DataError
from finetune_local.system.fields import parse
from finetune_local.system.messages import as_message
from finetune_local.training.run_folder.forecast import DataFacts

if TYPE_CHECKING:
    from finetune_local.gui.shell.context import Context
    from finetune_local.gui.shell.windows import Window

EXAMPLE = "orders.jsonl"
MOST_FILES = 100

Values = Mapping[str, Any]


def files_of(settings: DataSettings) -> list[str]:
    """All files, those to train on first."""
    return [*settings.files, *settings.validation_files]


def with_values(context: Context, settings: DataSettings, **values: Any) -> DataSettings:
    """The settings with other values; None is the default. Raises SpecError with a sentence for each value that cannot be."""
    given = {**settings.model_dump(mode="json", exclude_defaults=True), **values}
    return parse(
        DataSettings, {name: value for name, value in given.items() if value is not None}, context.t("data.title")
    )


def changed(
    context: Context, settings: DataSettings, found: Values, do: str, value: str, data: Mapping[str, str]
) -> DataSettings:
    """The settings after a press. Raises DataError, SpecError, DiskFull."""
    key = data.get("key", "")
    match do:
        case "data.path":
            return with_files(context, settings, [_typed(context, data.get("where", value))])
        case "data.example":
            place = kept.keep_copy(paths.assets() / "example" / EXAMPLE, context.home.data, EXAMPLE)
            return with_files(context, settings, [str(place)])
        case "data.remove":
            return _placed(context, settings, value, None)
        case "data.use":
            return _placed(context, settings, key, "validation_files" if value == "validate" else "files")
        case "data.set":
            return with_values(context, settings, **{key: _given(key, value)})
        case "data.scrub":
            kinds = [kind for kind in settings.scrub if kind not in (key, "all")]
            return with_values(context, settings, scrub=[*kinds, key] if value == "true" else kinds)
        case "data.assistant":
            return with_values(context, settings, assistant=value or None)
        case "data.columns":
            columns = forms.columns_of(data, found)
            if not columns:
                raise DataError(as_message(context.t("data.columns_none")))
            return with_values(context, settings, columns=columns, format=None)
        case "data.no_columns":
            return with_values(context, settings, columns=None)
        case "data.use_chosen":
            columns = [f"{role}={name}" for role, name in found.get("guess", {}).items()]
            return with_values(context, settings, columns=columns)
    return settings


def uploaded(context: Context, settings: DataSettings, names: Sequence[str]) -> DataSettings:
    """With files that were dropped, copied into the home folder. Raises DataError, DiskFull."""
    _check_number(context, settings, names)
    places = []
    for source in map(Path, names):
        if not source.is_file():
            raise DataError(as_message(context.t("data.upload_incomplete", file=kept.harmless(source.name))))
        places.append(str(kept.keep(source, context.home.data, source.name)))
    return with_files(context, settings, places)


def with_files(context: Context, settings: DataSettings, names: Sequence[str]) -> DataSettings:
    """With more files to train on. Raises DataError for one that cannot be data."""
    new = [name for name in dict.fromkeys(names) if name not in files_of(settings)]
    _check_number(context, settings, new)
    for name in new:
        examine(Path(name), name)
    return with_values(context, settings, files=[*settings.files, *new])


def keep(window: Window, settings: DataSettings) -> None:
    """Remember settings in the window; other files are seen from their first row. Without any file nothing is remembered."""
    settings = settings if files_of(settings) else DataSettings()
    shared = window.shared
    if settings != shared.data:
        if files_of(settings) != files_of(shared.data):
            window.state(DataState).reset("first", "row")
        shared.data, shared.data_facts = settings, None


def facts(found: Values, objective: Objective) -> DataFacts | None:
    """What the forecast of a run with an objective needs to know of the data; None if the tokens are not known.

    A row of a file may become several examples (pieces of a long text), and an example several rows of a batch.
    """
    report = found["report"]
    if not report["tokens"]:
        return None
    examples = report["examples"] // objective.rows
    used, held_out = report["train_rows"] + report["validation_rows"], int(report["validation_rows"])
    scale = examples / max(1, report["used"])
    tokens = report["tokens"] * used // max(1, report["used"])  # with separate validation files, as if they were alike
    return DataFacts(round(used * scale), tokens, report["longest"], round(held_out * scale))


def usable(found: Values) -> bool:
    """Whether a run could begin with this data."""
    return bool(found["report"]["used"]) and not found["problems"]


def _check_number(context: Context, settings: DataSettings, new: Sequence[str]) -> None:
    if len(files_of(settings)) + len(new) > MOST_FILES:
        raise DataError(as_message(context.t("data.too_many", n=MOST_FILES)))


def _typed(context: Context, text: str) -> str:
    """The file that a typed or pasted path names. Raises DataError."""
    text = text.strip().strip("\"'")
    if text.startswith("file://"):
        text = unquote(text.removeprefix("file://"))
        text = text[1:] if re.match(r"/[A-Za-z]:", text) else text  # file:///C:/data.csv
    if not text:
        raise DataError(as_message(context.t("data.no_path")))
    return str(paths.located(text).absolute())


def _placed(context: Context, settings: DataSettings, name: str, key: str | None) -> DataSettings:
    """With a file moved to the files of another setting, or removed."""
    rest = {one: [file for file in getattr(settings, one) if file != name] for one in ("files", "validation_files")}
    if key is not None:
        rest[key].append(name)
    return with_values(context, settings, **rest)


def _given(key: str, text: str) -> Any:
    """A field's text as the setting's value; an empty one is the default. What is no number is told by the setting itself."""
    if not text.strip():
        return None
    if key == "validation":
        with suppress(ValueError):
            return float(text) / 100
    return text
