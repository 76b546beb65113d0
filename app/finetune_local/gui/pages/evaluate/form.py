"""What is to be evaluated, on which questions, how: the form of the Evaluate page, and the job it stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_local.adapters.library import run_folder
from finetune_local.data.dataset.prepare import CONVERSATIONS
from finetune_local.evaluation import expect
from finetune_local.gui.i18n.translate import sentence
from finetune_local.gui.shell.selection import chosen_model
from finetune_local.gui.widgets import fields, parts
from finetune_local.gui.widgets.html import Html, h
from finetune_local.system.errors import DataError, FinetuneError, SpecError
from finetune_local.system.files import stamp
from finetune_local.system.messages import as_message, message_of
from finetune_local.system.paths import located

if TYPE_CHECKING:
    from finetune_local.gui.shell.context import Context
    from finetune_local.gui.shell.windows import Window

BASE = ""
"""In an adapter's place: the base model alone."""

METRICS = ("exact", "contains", "f1", "loss")
USUAL: Mapping[str, Any] = {"rows": "run", "file": "", "few_shot": 3, "metric": "exact", "limit": None}
_NUMBERS = {"few_shot": 100, "limit": 1_000_000}

Rows = Sequence[Mapping[str, Any]]


def form_of(window: Window) -> dict[str, Any]:
    """The window's form, with what is usual where nothing was said."""
    return {**USUAL, **(window["evaluate_form"] or {})}


def changed(context: Context, window: Window, key: str, text: str) -> None:
    """A field was changed. Raises SpecError for a number that is none."""
    value: Any = text.strip()
    if key in _NUMBERS:
        if value and not (value.isdecimal() and int(value) <= _NUMBERS[key]):
            raise SpecError(as_message(context.t("evaluate.no_number", text=value, most=_NUMBERS[key])))
        value = int(value) if value else USUAL[key]
        if key == "limit" and value == 0:
            value = None
    window.set(evaluate_form={**form_of(window), key: value})


def chosen_adapter(window: Window, adapters: Rows) -> Mapping[str, Any] | None:
    """The adapter to evaluate: the window's, else the newest; None for the base alone."""
    name = window["adapter"]
    if name == BASE and name is not None:
        return None
    found = next((row for row in adapters if row["name"] == name), None)
    usable = [row for row in adapters if not row["problem"]]
    return found or max(usable, key=lambda row: row["created_time"] or 0, default=None)


def arguments(context: Context, window: Window, adapters: Rows) -> dict[str, Any]:
    """Of the job. Raises SpecError, DataError where it could not be done."""
    form, adapter = form_of(window), chosen_adapter(window, adapters)
    files = [form["file"]] if _own_file(form, adapter) else []
    if files == [""]:
        raise SpecError(as_message(context.t("evaluate.no_file")))
    for name in files:
        if not located(name).is_file():
            raise DataError(as_message(context.t("evaluate.file_gone", file=name)))
    if adapter is not None and adapter["problem"]:
        raise SpecError(as_message(adapter["problem"]))
    return {
        "adapter": adapter["name"] if adapter else None,
        "model": None if adapter else chosen_model(context, window),
        "data": [str(located(name)) for name in files],
        "few_shot": form["few_shot"],
        "metric": form["metric"],
        "limit": form["limit"],
    }


def card(context: Context, window: Window, adapters: Rows) -> Html:
    """The form."""
    t = context.t
    form, adapter = form_of(window), chosen_adapter(window, adapters)
    names = [(str(row["name"]), str(row["name"])) for row in adapters]
    which = fields.select(
        t("evaluate.adapter"),
        "form.adapter",
        "adapter",
        [*names, (BASE, t("evaluate.no_adapter"))],
        str(adapter["name"]) if adapter else BASE,
        id="evaluate-adapter",
        help=t("evaluate.on_base", method=adapter["method"], base=adapter["base"])
        if adapter
        else chosen_model(context, window),
    )
    own = _own_file(form, adapter)
    run_rows = _of_run(adapter)
    choices = [("file", t("evaluate.rows_file"))]
    if run_rows:
        choices.insert(0, ("run", t("evaluate.rows_run")))
    source = fields.select(
        t("evaluate.rows"),
        "form.set",
        "rows",
        choices,
        "file" if own else "run",
        id="evaluate-rows",
        help=None if own else t("evaluate.rows_help"),
    )
    file = fields.path(
        t,
        t("evaluate.file"),
        "form.set",
        "file",
        form["file"],
        id="evaluate-file",
        pick="file",
        placeholder=t("evaluate.file_hint"),
        help=t("evaluate.rows_none") if adapter and not run_rows else None,
    )
    shots = fields.number(
        t("evaluate.few_shot"), "form.set", "few_shot", form["few_shot"], id="evaluate-few-shot", most=100,
        help=t("evaluate.few_shot_help"),
    )  # fmt: skip
    metric = fields.select(
        t("evaluate.metric"), "form.set", "metric", [(key, t(f"evaluate.metric_{key}")) for key in METRICS],
        form["metric"], id="evaluate-metric", help=t("evaluate.metric_help"),
    )  # fmt: skip
    limit = fields.number(
        t("evaluate.limit"), "form.set", "limit", form["limit"], id="evaluate-limit", least=1,
        placeholder=t("common.automatic"), help=t("evaluate.limit_help"),
    )  # fmt: skip
    return parts.card(
        h("div", which, source, shots, metric, limit, class_="field-grid"),
        file if own else None,
        h(
            "div",
            parts.button(t("evaluate.start"), "start", kind="primary"),
            h("span", _expected(context, window, adapter), class_="soft grow", role="status"),
            class_="row form-end",
        ),
        title=t("evaluate.setup"),
    )


def _expected(context: Context, window: Window, adapter: Mapping[str, Any] | None) -> str:
    """How much work it will be, and how long, as far as that is known."""
    t, f, form = context.t, context.f, form_of(window)
    own = _own_file(form, adapter)
    if own and not form["file"]:
        return ""
    folder = Path(adapter["folder"]) if adapter else None
    file = located(form["file"]) if own else None
    try:
        rows, more = _count(folder, file, form["limit"], _stamp(folder, file))
    except FinetuneError as error:
        return sentence(t, message_of(error))
    if rows is None:
        return ""
    answers = 1 + bool(form["few_shot"]) + (adapter is not None)
    if more:
        return t("evaluate.expected_more", n=f.number(rows), answers=f.number(answers))
    model = str(adapter["base"]) if adapter else chosen_model(context, window)
    seconds = expect.seconds_of(context.home, model, rows, form["few_shot"], tuned=adapter is not None)
    time = t("evaluate.expected_time", span=f.about(seconds)) if seconds else t("evaluate.expected_unknown")
    return f"{t('evaluate.expected_rows', n=f.number(rows), answers=f.number(answers))} · {time}"


@lru_cache(maxsize=64)
def _count(adapter: Path | None, file: Path | None, limit: int | None, _stamp: object) -> tuple[int | None, bool]:
    return expect.rows_of(adapter, [file] if file else [], limit)


def _stamp(adapter: Path | None, file: Path | None) -> object:
    """Another one where the rows may have changed."""
    run = run_folder(adapter) if adapter is not None else None
    return (
        stamp(file.parent, file.name) if file else None,
        stamp(run / "data", CONVERSATIONS) if run else None,
    )


def _of_run(adapter: Mapping[str, Any] | None) -> bool:
    """Whether an adapter lies in a run that kept rows aside."""
    run = run_folder(Path(adapter["folder"])) if adapter else None
    return run is not None and (run / "data" / CONVERSATIONS).is_file()


def _own_file(form: Mapping[str, Any], adapter: Mapping[str, Any] | None) -> bool:
    return form["rows"] == "file" or not _of_run(adapter)
