"""What presses on the data page make of a window's settings of [data]: plain values in, plain values out, checked by the spec."""

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


def settings_of(window: Window) -> dict[str, Any]:
    """The window's settings of [data], as plain values; empty where it has no files."""
    return dict(window.shared.data)


def files_of(settings: Values) -> list[str]:
    """All files, those to learn from first."""
    return [*settings.get("files", ()), *settings.get("validation_files", ())]


def changed(
    context: Context, settings: Values, found: Values, do: str, value: str, data: Mapping[str, str]
) -> dict[str, Any]:
    """The settings after a press. Raises DataError, DiskFull; that a value is possible is for keep() to check."""
    key = data.get("key", "")
    match do:
        case "data.path":
            return with_files(context, settings, [_typed(context, data.get("where", value))])
        case "data.example":
            place = kept.keep_copy(paths.assets() / "example" / EXAMPLE, context.home.data, EXAMPLE)
            return with_files(context, settings, [str(place)])
        case "data.remove":
            return _placed(settings, value, None)
        case "data.use":
            return _placed(settings, key, "validation_files" if value == "validate" else "files")
        case "data.set":
            return {**settings, key: _given(key, value)}
        case "data.scrub":
            kinds = [kind for kind in settings.get("scrub", ()) if kind not in (key, "all")]
            return {**settings, "scrub": [*kinds, key] if value == "true" else kinds}
        case "data.assistant":
            return {**settings, "assistant": value or None}
        case "data.columns":
            columns = forms.columns_of(data, found)
            if not columns:
                raise DataError(as_message(context.t("data.columns_none")))
            return {**settings, "columns": columns, "format": None}
        case "data.no_columns":
            return {**settings, "columns": None}
        case "data.use_chosen":
            return {**settings, "columns": [f"{role}={name}" for role, name in found.get("guess", {}).items()]}
    return dict(settings)


def uploaded(context: Context, settings: Values, names: Sequence[str]) -> dict[str, Any]:
    """With files that were dropped: they come to lie in the home folder. Raises DataError, DiskFull."""
    _check_number(context, settings, names)
    places = []
    for source in map(Path, names):
        if not source.is_file():
            raise DataError(as_message(context.t("data.upload_incomplete", file=kept.harmless(source.name))))
        places.append(str(kept.keep(source, context.home.data, source.name)))
    return with_files(context, settings, places)


def with_files(context: Context, settings: Values, names: Sequence[str]) -> dict[str, Any]:
    """With more files to learn from. Raises DataError for one that cannot be data."""
    new = [name for name in dict.fromkeys(names) if name not in files_of(settings)]
    _check_number(context, settings, new)
    for name in new:
        examine(Path(name), name)
    return {**settings, "files": [*settings.get("files", ()), *new]}


def keep(context: Context, window: Window, values: Values) -> None:
    """Remember settings in the window; only what is no default is written. Raises SpecError where they cannot be."""
    given = {name: value for name, value in values.items() if value is not None}
    settings = parse(DataSettings, given, context.t("data.title"))
    plain = {"files": list(settings.files), **settings.model_dump(mode="json", exclude_defaults=True)}
    data = plain if files_of(plain) else {}
    if data != settings_of(window):
        if files_of(data) != files_of(settings_of(window)):
            window.state(DataState).reset("first", "row")
        window.shared.data, window.shared.data_facts = data, None


def facts(found: Values) -> DataFacts | None:
    """What the forecast of a run needs to know of the data; None where the tokens are not known."""
    report = found["report"]
    if not report["tokens"]:
        return None
    held_out = int(report["validation_rows"])
    return DataFacts(report["train_rows"] + held_out, report["tokens"], report["longest"], held_out)


def usable(found: Values) -> bool:
    """Whether a run could begin with this data."""
    return bool(found["report"]["used"]) and not found["problems"]


def _check_number(context: Context, settings: Values, new: Sequence[str]) -> None:
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


def _placed(settings: Values, name: str, key: str | None) -> dict[str, Any]:
    """With a file among those of another setting, or among none."""
    rest = {one: [file for file in settings.get(one, ()) if file != name] for one in ("files", "validation_files")}
    if key is not None:
        rest[key].append(name)
    return {**settings, **rest}


def _given(key: str, text: str) -> Any:
    """A field's text as the setting's value; an empty one is the default. What is no number is told by the setting itself."""
    if not text.strip():
        return None
    if key == "validation":
        with suppress(ValueError):
            return float(text) / 100
    return text
