"""Data: which files, what is in them, what of it is learned, and how they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname
from weakref import WeakKeyDictionary

from finetune_local import paths
from finetune_local.data import kept
from finetune_local.data.detect import examine
from finetune_local.errors import DataError, FinetuneError
from finetune_local.spec.fields import parse
from finetune_local.spec.run import DataSettings
from finetune_local.ui import dataforms, datarows, dataview, looks, parts
from finetune_local.ui.html import Html, h
from finetune_local.ui.trainsetup import chosen_model
from finetune_local.ui.translate import sentence

if TYPE_CHECKING:
    from finetune_local.ui.context import Context
    from finetune_local.ui.windows import Window

TITLE, ORDER = "nav.data", 20
EXAMPLE = "orders.jsonl"
MOST_FILES = 100
PATIENT_SECONDS = 1.2
"""How long a press waits for what it asked for, so that small files do not flicker."""


def build(context: Context) -> None:
    """See main.py."""
    Page(context).build()


class Page:
    """One server's data page; each window has its own Look."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._looks: WeakKeyDictionary[Window, looks.Look] = WeakKeyDictionary()

    def build(self) -> None:
        """Make the components and wire them."""
        import gradio as gr

        context, t = self.context, self.context.t
        self.head = parts.view(id="data-head")
        drop = h("div", h("strong", t("data.drop")), h("p", t("data.drop_formats"), class_="soft"))
        with gr.Column(elem_id="data-drop", elem_classes=["drop-here"]):
            parts.view(drop)
            with gr.Row(elem_id="data-add-row"):
                self.upload = gr.UploadButton(t("data.choose"), file_count="multiple", elem_id="data-upload", size="md")
                self.add = parts.view(id="data-add")
        self.files = parts.view(id="data-files")
        with gr.Row(elem_id="data-body"):
            with gr.Column(elem_id="data-main"):
                self.main = parts.view(id="data-found")
            with gr.Column(elem_id="data-side"):
                self.side = parts.view(id="data-how")
        views = [self.head, self.add, self.files, self.main, self.side]
        context.on_show("data", self.show, views)
        context.on_tick("data", self.tick, views)
        context.on(self.upload.upload, self.uploaded, self.upload, [*views, self.upload])
        for view in views:
            context.on(view.click, self.press, None, [*views, context.nav])

    # ── drawing ────────────────────────────────────────────────────────────────────────────────────────────

    def show(self, window: Window) -> dict[Any, Any]:
        """The page comes into view: what is on disk may have changed."""
        self._ask(window)
        return self._draw(window)

    def tick(self, window: Window) -> dict[Any, Any]:
        """There may be more of a big file."""
        if window.shown.get("data_version") == self._look(window).version:
            return {}
        return self._draw(window)

    def _draw(self, window: Window) -> dict[Any, Any]:
        """The views that have changed."""
        t, f = self.context.t, self.context.f
        look, settings = self._look(window), settings_of(window)
        window.shown["data_version"] = look.version
        self._keep_facts(window, look)
        found = look.found if settings.get("files") else None
        drawn = {
            self.head: self._header(look, settings),
            self.add: self._adding(len(_files(settings))),
            self.files: dataview.files_card(t, f, settings, found) if _files(settings) else "",
            self.main: self._found(window, look, settings),
            self.side: self._how(settings, found) if settings.get("files") else "",
        }
        return {view: html for view, html in drawn.items() if window.changed(f"data {view.elem_id}", html)}

    def _header(self, look: looks.Look, settings: Mapping[str, Any]) -> Html:
        t = self.context.t
        ready = bool(settings.get("files")) and not (look.complete and look.found and not _usable(look.found))
        button = parts.button(t("data.train"), "data.train", kind="primary", disabled=not ready)
        return parts.header(t("data.title"), t("data.lead"), button if _files(settings) else None)

    def _adding(self, known: int) -> Html:
        """Made anew with every file, so that a path that was taken over is gone from its field."""
        t = self.context.t
        browse = h(
            "button",
            t("common.browse"),
            type="button",
            class_="button needs-window",
            data_pick="file",
            data_into="data-path",
        )
        path = h(
            "form",
            h("label", t("data.path"), for_="data-path-field"),
            h(
                "span",
                h(
                    "input",
                    id="data-path-field",
                    name_="path",
                    type="text",
                    autocomplete="off",
                    spellcheck="false",
                    placeholder=t("data.path_hint"),
                    data_do="data.path",
                ),
                id="data-path",
                class_="grow",
            ),
            h("button", t("data.add"), type="submit", class_="button"),
            browse,
            data_do="data.path",
            data_files=known,
            class_="row",
        )
        example = parts.button(t("data.example"), "data.example", title=t("data.example_title"))
        return h("div", example, path, class_="row")

    def _found(self, window: Window, look: looks.Look, settings: Mapping[str, Any]) -> Html | str:
        t, f = self.context.t, self.context.f
        if not settings.get("files"):
            if _files(settings):
                return h("p", t("data.nothing_to_learn"), class_="hint warn")
            return dataview.examples_card(t)
        found, rows = look.found, look.rows
        shown: list[Any] = []
        if look.problem is not None:
            shown.append(self._problem(look.problem))
        elif look.working:
            shown.append(parts.card(parts.progress(t, f, t("data.looking"), look.share if found else None)))
        readable = found["readable"] if found and found["complete"] else None
        row = int(window["data_row"] or 0)
        if found is not None:
            shown += [
                dataview.figures(t, f, found),
                dataforms.columns_card(t, f, settings, found),
                dataforms.speakers_card(t, f, settings, found),
                dataview.notes(t, f, found, chosen_model(self.context, window), settings.get("assistant")),
            ]
        if rows is not None and rows["rows"]:
            shown += [
                datarows.rows_card(t, f, rows, readable, row),
                datarows.mask_card(t, f, rows, row, readable),
            ]
        if found is not None:
            shown += [dataview.lengths_card(t, f, found), dataview.rejected_card(t, f, found)]
        return h("div", shown, class_="stack")

    def _how(self, settings: Mapping[str, Any], found: Mapping[str, Any] | None) -> Html:
        t, f = self.context.t, self.context.f
        cards = [dataforms.how_card(t, f, settings, found)]
        if found is not None:
            cards.append(dataforms.personal_card(t, f, settings, found))
        return h("div", cards, class_="stack")

    def _problem(self, problem: Exception) -> Html:
        if not isinstance(problem, FinetuneError):
            raise problem  # a defect: shown by the notice, with its traceback
        t = self.context.t
        again = parts.button(t("data.look_again"), "data.again", kind="small")
        return h("div", h("p", sentence(t, str(problem))), again, class_="hint bad")

    # ── what a press does ──────────────────────────────────────────────────────────────────────────────────

    def press(self, window: Window, event: Any) -> dict[Any, Any]:
        """A button, a select or a form of any of the views."""
        do, value, data = parts.pressed(event)
        settings = settings_of(window)
        match do:
            case "data.train":
                return {self.context.nav: self.context.go(window, "train", data=settings)}
            case "data.model":
                return {self.context.nav: self.context.go(window, "model")}
            case "data.page":
                window.set(data_first=int(value), data_row=int(value))
            case "data.row":
                row = max(0, int(value))
                first = int(window["data_first"] or 0)
                window.set(
                    data_row=row,
                    data_first=first if first <= row < first + datarows.PAGE else row - row % datarows.PAGE,
                )
            case "data.again":
                self._looks.pop(window, None)
            case _:
                self._change(window, self._changed(window, settings, do, value, data))
        return self._answered(window)

    def _changed(
        self, window: Window, settings: dict[str, Any], do: str, value: str, data: Mapping[str, str]
    ) -> dict[str, Any]:
        """The settings after a press that changes them. Raises DataError, SpecError, DiskFull."""
        found = self._look(window).found or {}
        match do:
            case "data.path":
                return self._with_files(settings, [self._typed(data.get("path", value))])
            case "data.example":
                place = kept.keep_copy(paths.assets() / "example" / EXAMPLE, self.context.home.data, EXAMPLE)
                return self._with_files(settings, [str(place)])
            case "data.remove":
                return _placed(settings, value, None)
            case "data.use":
                return _placed(settings, data.get("key", ""), "validation_files" if value == "validate" else "files")
            case "data.set":
                return settings | {data.get("key", ""): _given(data.get("key", ""), value)}
            case "data.scrub":
                kinds = [kind for kind in settings.get("scrub", ()) if kind not in (data.get("key"), "all")]
                return settings | {"scrub": [*kinds, data.get("key", "")] if value == "true" else kinds}
            case "data.assistant":
                return settings | {"assistant": value or None}
            case "data.columns":
                columns = dataforms.columns_of(data, found)
                if not columns:
                    raise DataError(self.context.t("data.columns_nothing"))
                return settings | {"columns": columns, "format": "auto"}
            case "data.forget":
                return settings | {"columns": []}
            case "data.prefer":
                return settings | {"columns": [f"{role}={name}" for role, name in found.get("guess", {}).items()]}
        return settings

    def uploaded(self, window: Window, names: Sequence[str] | None) -> dict[Any, Any]:
        """Files were dropped or chosen: they come to lie in the home folder. Raises DataError, DiskFull."""
        settings = settings_of(window)
        self._check_number(settings, names or ())
        places = []
        for source in map(Path, names or ()):
            if not source.is_file():
                raise DataError(self.context.t("data.upload_gone", file=kept.harmless(source.name)))
            places.append(str(kept.keep(source, self.context.home.data, source.name)))
        self._change(window, self._with_files(settings, places))
        return {**self._answered(window), self.upload: None}

    def _with_files(self, settings: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
        """With more files to learn from. Raises DataError for one that cannot be data."""
        new = [name for name in dict.fromkeys(names) if name not in _files(settings)]
        self._check_number(settings, new)
        for name in new:
            examine(Path(name), name)
        return {**settings, "files": [*settings.get("files", ()), *new]}

    def _check_number(self, settings: Mapping[str, Any], new: Sequence[str]) -> None:
        if len(_files(settings)) + len(new) > MOST_FILES:
            raise DataError(self.context.t("data.too_many", n=MOST_FILES))

    def _typed(self, text: str) -> str:
        """The file that a typed or pasted path names. Raises DataError."""
        text = text.strip().strip("\"'")
        if text.startswith("file://"):
            text = url2pathname(urlsplit(text).path)
        if not text:
            raise DataError(self.context.t("data.no_path"))
        return str(Path(text).expanduser().absolute())

    # ── what is remembered ─────────────────────────────────────────────────────────────────────────────────

    def _change(self, window: Window, values: Mapping[str, Any]) -> None:
        """Remember settings. Raises SpecError where one cannot be."""
        given = {name: value for name, value in values.items() if value is not None}
        settings = parse(DataSettings, given, self.context.t("data.title"))
        plain = settings.model_dump(mode="json", exclude_defaults=True)
        data = {"files": list(settings.files)} | plain if _files(plain) else None
        if data != window["data"]:
            other = _files(data or {}) != _files(settings_of(window))
            window.set(data=data, data_facts=None, **({"data_first": 0, "data_row": 0} if other else {}))

    def _keep_facts(self, window: Window, look: looks.Look) -> None:
        """For the forecast on the Train page."""
        if look.complete and look.found and look.found["report"]["tokens"]:
            report = look.found["report"]
            facts = {
                "rows": report["train_rows"] + report["validation_rows"],
                "tokens": report["tokens"],
                "longest": report["longest"],
                "held_out": report["validation_rows"],
            }
            window.set(data_facts=facts)

    def _look(self, window: Window) -> looks.Look:
        if window not in self._looks:
            self._looks[window] = looks.Look(self.context.desk)
        return self._looks[window]

    def _ask(self, window: Window) -> None:
        settings = settings_of(window)
        if settings.get("files"):
            first, row = int(window["data_first"] or 0), int(window["data_row"] or 0)
            model = chosen_model(self.context, window)
            models = self.context.home.models
            self._look(window).ask(looks.question(settings, model, models, first, datarows.PAGE, row))

    def _answered(self, window: Window) -> dict[Any, Any]:
        self._ask(window)
        self._look(window).wait(PATIENT_SECONDS)
        return self._draw(window)


def settings_of(window: Window) -> dict[str, Any]:
    """The window's settings of [data], as plain values."""
    data = window["data"]
    return dict(data) if isinstance(data, Mapping) else {}


def _files(settings: Mapping[str, Any]) -> list[str]:
    return [*settings.get("files", ()), *settings.get("validation_files", ())]


def _placed(settings: Mapping[str, Any], name: str, key: str | None) -> dict[str, Any]:
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


def _usable(found: Mapping[str, Any]) -> bool:
    return bool(found["report"]["used"]) and not found["problems"]
