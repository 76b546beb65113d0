"""The forms of the Data page (roles of columns, the speaker to learn, reading, personal data), and what they change in the settings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import unquote

from finetune_local.data.formats import formats
from finetune_local.data.readers import kept
from finetune_local.data.readers.columns import roles
from finetune_local.data.readers.detect import examine
from finetune_local.data.readers.scrub import KINDS, kinds_of
from finetune_local.gui.i18n.formats import Formats
from finetune_local.gui.i18n.strings import Strings, sentence
from finetune_local.gui.pages.data.rows import data_text
from finetune_local.gui.pages.data.state import DataState
from finetune_local.gui.widgets import parts
from finetune_local.gui.widgets.html import Html, h
from finetune_local.spec.objectives import Objective
from finetune_local.spec.run import COLUMN_ROLES, DataSettings
from finetune_local.system import paths
from finetune_local.system.errors import DataError
from finetune_local.system.fields import parse
from finetune_local.system.messages import as_message
from finetune_local.training.run_folder.forecast import DataFacts

if TYPE_CHECKING:
    from finetune_local.gui.shell.context import Context
    from finetune_local.gui.shell.windows import Window


COLUMNS_SHOWN = 40
_SPEAKERS_SHOWN = 50

Values = Mapping[str, Any]
EXAMPLE = "orders.jsonl"
MOST_FILES = 100


def columns_card(t: Strings, f: Formats, settings: DataSettings, found: Values) -> Html | None:
    """A form with a role for each column; None unless no format recognises them, or roles are assigned."""
    chosen = roles(settings.columns)
    if not chosen and not found["unknown"]:
        return None
    guessed = {name: role for role, name in found["guess"].items()} if not chosen else {}
    known = chosen or guessed
    rows = []
    for index, column in enumerate(found["columns"][:COLUMNS_SHOWN]):
        name = column["name"]
        role = known.get(name.strip().lower(), "")
        options = [
            h("option", t(f"data.role_{one or 'none'}"), value=one, selected=one == role) for one in ("", *COLUMN_ROLES)
        ]
        select = h(
            "select",
            options,
            name_=f"column{index}",
            data_fresh=f"{name} {role}",
            aria_label=t("data.column_role_of", name=name),
        )
        rows.append((h("strong", data_text(name)), (data_text(column["sample"]), "wide soft"), select))
    left = len(found["columns"]) - COLUMNS_SHOWN
    headings = (t("data.column"), t("data.column_sample"), t("data.column_role"))
    forget = parts.button(t("data.columns_reset"), "data.no_columns", kind="quiet") if chosen else None
    form = h(
        "form",
        parts.table(headings, rows, caption=t("data.columns")),
        h("p", t("data.columns_more", n=f.number(left)), class_="soft") if left > 0 else None,
        h(
            "div",
            h("button", t("data.columns_apply"), type="submit", class_="button primary"),
            forget,
            class_="row form-end",
        ),
        data_do="data.columns",
    )
    if chosen:
        named = ", ".join(f"{name} = {t(f'data.role_{role}')}" for role, name in _pairs(settings))
        summary = h("summary", h("strong", t("data.columns_known")), " ", h("span", data_text(named), class_="soft"))
        return parts.card(h("details", summary, form, data_keep="data-columns"))
    return parts.card(h("p", t("data.columns_text"), class_="soft"), form, title=t("data.columns"), class_="attention")


def _pairs(settings: DataSettings) -> list[tuple[str, str]]:
    """The (role, column) pairs in the settings."""
    return [(role, name) for role, _, name in (column.partition("=") for column in settings.columns)]


def columns_of(data: Mapping[str, str], found: Values) -> list[str]:
    """The setting `columns` of a submitted form."""
    names = [column["name"] for column in found["columns"][:COLUMNS_SHOWN]]
    return [f"{role}={name}" for index, name in enumerate(names) if (role := data.get(f"column{index}", ""))]


def speakers_card(t: Strings, f: Formats, settings: DataSettings, found: Values) -> Html | None:
    """A choice of the speaker to learn; None unless speakers have names."""
    assistant = settings.assistant or ""
    names = found["named"][:_SPEAKERS_SHOWN]
    if not names and not assistant:
        return None
    counts = found["speakers"]
    if assistant and assistant not in names:
        names = [assistant, *names]
    options = [h("option", t("data.speaker_none"), value="", selected=not assistant)]
    options += [
        h(
            "option",
            t("data.speaker", name=name, n=f.number(counts.get(name, 0))),
            value=name,
            selected=name == assistant,
        )
        for name in names
    ]
    return parts.card(
        h("label", t("data.speakers_text"), for_="data-speaker", class_="soft"),
        h("select", options, id="data-speaker", data_do="data.assistant", data_fresh=assistant),
        title=t("data.speakers"),
        class_="attention" if not assistant else "",
    )


def how_card(t: Strings, f: Formats, settings: DataSettings, found: Values | None) -> Html:
    """A form for template, format, lengths and split."""
    format_ = settings.format
    choices = [("auto", t("data.format_auto"))]
    choices += [(one.key, sentence(t, one.title)) for one in formats().values() if one.example]
    templates = get_args(DataSettings.model_fields["template"].annotation)
    template = settings.template
    longest = found["report"]["max_length"] if found and found["report"]["tokens"] else None
    own = bool(settings.validation_files)
    share = settings.validation
    fields = h(
        "div",
        _field(
            t("data.template"),
            "data-template",
            _select("data-template", "template", [(one, t(f"data.template_{one}")) for one in templates], template),
        ),
        _field(t("data.format"), "data-format", _select("data-format", "format", choices, format_)),
        _field(
            t("data.max_length"),
            "data-max-length",
            _number(
                "data-max-length",
                "max_length",
                settings.max_length,
                least=8,
                placeholder=t("data.max_length_auto", n=f.number(longest)) if longest else t("common.automatic"),
            ),
        ),
        _field(
            t("data.limit"),
            "data-limit",
            _number("data-limit", "limit", settings.limit, least=1, placeholder=t("data.limit_all")),
        ),
        h("p", t("data.validation_own"), class_="soft")
        if own
        else _field(
            t("data.validation"),
            "data-validation",
            _number("data-validation", "validation", f"{100 * share:g}", least=0, most=90),
        ),
        class_="fields",
    )
    return parts.card(fields, title=t("data.how"))


def personal_card(t: Strings, f: Formats, settings: DataSettings, found: Values) -> Html:
    """The personal data found, with a checkbox per kind to replace it."""
    counts = found["report"]["personal"]
    replaced = kinds_of(settings.scrub)
    shown = [kind for kind in KINDS if counts.get(kind) or kind in replaced]
    if not shown:
        body: list[Html] = [h("p", t("data.personal_none"), class_="soft")]
    else:
        body = [
            h("p", t("data.personal_text"), class_="soft"),
            *(
                h(
                    "label",
                    h(
                        "input",
                        type="checkbox",
                        checked=kind in replaced,
                        data_do="data.scrub",
                        data_value=kind,
                        data_fresh=f"{kind} {kind in replaced}",
                        id=f"data-scrub-{kind}",
                    ),
                    h("span", t(f"data.kind_{kind}"), class_="grow"),
                    h("span", t("data.personal_found", n=f.number(counts.get(kind, 0))), class_="soft"),
                    class_="check",
                )
                for kind in shown
            ),
        ]
    return parts.card(*body, h("p", t("data.personal_limits"), class_="soft"), title=t("data.personal"))


def _field(label: str, id: str, control: Html) -> Html:  # noqa: A002 - HTML's word
    return h("div", h("label", label, for_=id), control, class_="field")


def _select(id: str, key: str, choices: list[tuple[str, str]], chosen: str) -> Html:  # noqa: A002 - HTML's word
    options = [h("option", text, value=value, selected=value == chosen) for value, text in choices]
    return h("select", options, id=id, data_do="data.set", data_value=key, data_fresh=chosen)


def _number(id: str, key: str, value: object, *, least: int, most: int | None = None, placeholder: str = "") -> Html:  # noqa: A002
    return h(
        "input",
        type="number",
        min=least,
        max=most,
        step="any" if key == "validation" else 1,
        value="" if value is None else value,
        placeholder=placeholder,
        id=id,
        data_do="data.set",
        data_value=key,
        data_fresh="" if value is None else value,
    )


def files_of(settings: DataSettings) -> list[str]:
    """All files, training files first."""
    return [*settings.files, *settings.validation_files]


def with_values(context: Context, settings: DataSettings, **values: Any) -> DataSettings:
    """The settings with other values; None means the default. Raises SpecError with a sentence for each invalid value."""
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
            columns = columns_of(data, found)
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
    """The settings with uploaded files, which are copied into the home folder. Raises DataError, DiskFull."""
    _check_number(context, settings, names)
    places = []
    for source in map(Path, names):
        if not source.is_file():
            raise DataError(as_message(context.t("data.upload_incomplete", file=kept.harmless(source.name))))
        places.append(str(kept.keep(source, context.home.data, source.name)))
    return with_files(context, settings, places)


def with_files(context: Context, settings: DataSettings, names: Sequence[str]) -> DataSettings:
    """The settings with more training files. Raises DataError for a file that is not data."""
    new = [name for name in dict.fromkeys(names) if name not in files_of(settings)]
    _check_number(context, settings, new)
    for name in new:
        examine(Path(name), name)
    return with_values(context, settings, files=[*settings.files, *new])


def keep(window: Window, settings: DataSettings) -> None:
    """Store settings in the window. Changed files are shown from their first row; without files the settings are reset."""
    settings = settings if files_of(settings) else DataSettings()
    shared = window.shared
    if settings != shared.data:
        if files_of(settings) != files_of(shared.data):
            window.state(DataState).reset("first", "row")
        shared.data, shared.data_facts, shared.data_kinds = settings, None, ()


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
    """Whether a run can start with this data."""
    return bool(found["report"]["used"]) and not found["problems"]


def _check_number(context: Context, settings: DataSettings, new: Sequence[str]) -> None:
    if len(files_of(settings)) + len(new) > MOST_FILES:
        raise DataError(as_message(context.t("data.too_many", n=MOST_FILES)))


def _typed(context: Context, text: str) -> str:
    """The file at a typed or pasted path. Raises DataError."""
    text = text.strip().strip("\"'")
    if text.startswith("file://"):
        text = unquote(text.removeprefix("file://"))
        text = text[1:] if re.match(r"/[A-Za-z]:", text) else text  # file:///C:/data.csv
    if not text:
        raise DataError(as_message(context.t("data.no_path")))
    return str(paths.located(text).absolute())


def _placed(context: Context, settings: DataSettings, name: str, key: str | None) -> DataSettings:
    """The settings with a file moved to another setting, or removed."""
    rest = {one: [file for file in getattr(settings, one) if file != name] for one in ("files", "validation_files")}
    if key is not None:
        rest[key].append(name)
    return with_values(context, settings, **rest)


def _given(key: str, text: str) -> Any:
    """A field's text as a value; None, the default, if empty. Text that is not a number is reported by the setting's validation."""
    if not text.strip():
        return None
    if key == "validation":
        with suppress(ValueError):
            return float(text) / 100
    return text
