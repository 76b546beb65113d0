"""The form of the Evaluate page: what to evaluate, on which rows, how; and the job it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_local.adapters.library import AdapterFacts, run_folder
from finetune_local.data.dataset.prepare import CONVERSATIONS
from finetune_local.evaluation import evaluate
from finetune_local.evaluation.metrics import DEFAULT, metrics
from finetune_local.gui.i18n.strings import sentence
from finetune_local.gui.pages.evaluate.state import EvaluateForm, EvaluateState
from finetune_local.gui.shell.pages import chosen_model
from finetune_local.gui.widgets import fields, parts
from finetune_local.gui.widgets.html import Html, h
from finetune_local.gui.widgets.measures import metric_title
from finetune_local.gui.widgets.runlist import method_name
from finetune_local.system.errors import DataError, FinetuneError, SpecError
from finetune_local.system.files import stamp
from finetune_local.system.messages import as_message, message_of
from finetune_local.system.paths import located

if TYPE_CHECKING:
    from finetune_local.gui.i18n.strings import Strings
    from finetune_local.gui.shell.context import Context
    from finetune_local.gui.shell.windows import Window

BASE = ""
"""In place of an adapter: the base model alone."""

_MOST = {"few_shot": 100, "limit": 1_000_000}
"""The largest number that each number field accepts."""


Rows = Sequence[AdapterFacts]


def changed(context: Context, window: Window, key: str, text: str) -> None:
    """Store a changed field. Raises SpecError for an invalid number."""
    state, typed = window.state(EvaluateState), text.strip()
    if key in _MOST:
        if typed and not (typed.isdecimal() and int(typed) <= _MOST[key]):
            raise SpecError(as_message(context.t("evaluate.no_number", text=typed, most=_MOST[key])))
        number = int(typed) if typed else None
        if key == "limit":
            state.form = replace(state.form, limit=number or None)
        else:
            state.form = replace(state.form, few_shot=EvaluateForm.few_shot if number is None else number)
    elif key == "rows":
        state.form = replace(state.form, rows="file" if typed == "file" else "run")
    elif key == "metric":
        state.form = replace(state.form, metric=typed if typed in metrics() else DEFAULT)
    elif key == "file":
        state.form = replace(state.form, file=typed)


def chosen_adapter(window: Window, adapters: Rows) -> AdapterFacts | None:
    """The adapter to evaluate: the window's selection, else the newest; None for the base alone."""
    name = window.shared.adapter
    if name == BASE:
        return None
    found = next((row for row in adapters if row.name == name), None)
    usable = [row for row in adapters if not row.problem]
    return found or max(usable, key=lambda row: row.created_time or 0, default=None)


def arguments(context: Context, window: Window, adapters: Rows) -> dict[str, object]:
    """The arguments of the job that the form describes. Raises SpecError, DataError."""
    form, adapter = window.state(EvaluateState).form, chosen_adapter(window, adapters)
    file = form.file if _own_file(form, adapter) else None
    if file == "":
        raise SpecError(as_message(context.t("evaluate.no_file")))
    if file is not None and not located(file).is_file():
        raise DataError(as_message(context.t("evaluate.file_gone", file=file)))
    if adapter is not None and adapter.problem:
        raise SpecError(as_message(adapter.problem))
    return {
        "adapter": adapter.name if adapter else None,
        "model": None if adapter else chosen_model(context, window),
        "data": [str(located(file))] if file is not None else [],
        "few_shot": form.few_shot,
        "metric": form.metric if form.metric in metrics() else DEFAULT,
        "limit": form.limit,
    }


def card(context: Context, window: Window, adapters: Rows) -> Html:
    """The form."""
    t, form, adapter = context.t, window.state(EvaluateState).form, chosen_adapter(window, adapters)
    own = _own_file(form, adapter)
    return parts.card(
        h(
            "div",
            _adapter_field(context, window, adapter, adapters),
            _rows_field(t, form, adapter),
            *_measure_fields(t, form),
            class_="field-grid",
        ),
        _file_field(t, form, adapter) if own else None,
        h(
            "div",
            parts.button(t("evaluate.start"), "start", kind="primary"),
            h("span", _expected(context, window, adapter), class_="soft grow", role="status"),
            class_="row form-end",
        ),
        title=t("evaluate.setup"),
    )


def _adapter_field(context: Context, window: Window, adapter: AdapterFacts | None, adapters: Rows) -> Html:
    t = context.t
    on_base = t("evaluate.on_base", method=method_name(t, adapter.method), base=adapter.base) if adapter else None
    return fields.select(
        t("evaluate.adapter"),
        "form.adapter",
        "adapter",
        [*((str(row.name), str(row.name)) for row in adapters), (BASE, t("evaluate.no_adapter"))],
        str(adapter.name) if adapter else BASE,
        id="evaluate-adapter",
        help=on_base or chosen_model(context, window),
    )


def _rows_field(t: Strings, form: EvaluateForm, adapter: AdapterFacts | None) -> Html:
    own = _own_file(form, adapter)
    held_out = [("run", t("evaluate.rows_run"))] if _of_run(adapter) else []
    return fields.select(
        t("evaluate.rows"),
        "form.set",
        "rows",
        [*held_out, ("file", t("evaluate.rows_file"))],
        "file" if own else "run",
        id="evaluate-rows",
        help=None if own else t("evaluate.rows_help"),
    )


def _file_field(t: Strings, form: EvaluateForm, adapter: AdapterFacts | None) -> Html:
    return fields.path(
        t,
        t("evaluate.file"),
        "form.set",
        "file",
        form.file,
        id="evaluate-file",
        pick="file",
        placeholder=t("evaluate.file_hint"),
        help=t("evaluate.rows_none") if adapter and not _of_run(adapter) else None,
    )


def _measure_fields(t: Strings, form: EvaluateForm) -> list[Html]:
    """Fields for the number of examples, the metric, and the maximum number of rows."""
    choices = [(key, metric_title(t, metric)) for key, metric in metrics().items()]
    return [
        fields.number(
            t("evaluate.few_shot"), "form.set", "few_shot", form.few_shot, id="evaluate-few-shot",
            most=_MOST["few_shot"], help=t("evaluate.few_shot_help"),
        ),
        fields.select(
            t("evaluate.metric"), "form.set", "metric", choices, form.metric, id="evaluate-metric",
            help=t("evaluate.metric_help"),
        ),
        fields.number(
            t("evaluate.limit"), "form.set", "limit", form.limit, id="evaluate-limit", least=1,
            placeholder=t("common.automatic"), help=t("evaluate.limit_help"),
        ),
    ]  # fmt: skip


def _expected(context: Context, window: Window, adapter: AdapterFacts | None) -> str:
    """The expected number of rows and answers, and the duration, if known."""
    t, f, form = context.t, context.f, window.state(EvaluateState).form
    own = _own_file(form, adapter)
    if own and not form.file:
        return ""
    folder = Path(adapter.folder) if adapter else None
    file = located(form.file) if own else None
    try:
        rows, more = _count(folder, file, form.limit, _stamp(folder, file))
    except FinetuneError as error:
        return sentence(t, message_of(error))
    if rows is None:
        return ""
    answers = 1 + bool(form.few_shot) + (adapter is not None)
    if more:
        return t("evaluate.expected_more", n=f.number(rows), answers=f.number(answers))
    model = str(adapter.base) if adapter else chosen_model(context, window)
    seconds = evaluate.seconds_of(context.home, model, rows, form.few_shot, tuned=adapter is not None)
    time = t("evaluate.expected_time", span=f.about(seconds)) if seconds else t("evaluate.expected_unknown")
    return f"{t('evaluate.expected_rows', n=f.number(rows), answers=f.number(answers))} · {time}"


@lru_cache(maxsize=64)
def _count(adapter: Path | None, file: Path | None, limit: int | None, _stamp: object) -> tuple[int | None, bool]:
    return evaluate.rows_of(adapter, [file] if file else [], limit)


def _stamp(adapter: Path | None, file: Path | None) -> object:
    """A value that changes if the rows may have changed."""
    run = run_folder(adapter) if adapter is not None else None
    return (
        stamp(file.parent, file.name) if file else None,
        stamp(run / "data", CONVERSATIONS) if run else None,
    )


def _of_run(adapter: AdapterFacts | None) -> bool:
    """Whether an adapter belongs to a run with held-out rows."""
    run = run_folder(Path(adapter.folder)) if adapter else None
    return run is not None and (run / "data" / CONVERSATIONS).is_file()


def _own_file(form: EvaluateForm, adapter: AdapterFacts | None) -> bool:
    return form.rows == "file" or not _of_run(adapter)
