"""What is to be exported, as what, in which format, where to: the form of the Export page, and the job it stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_local.export import exports
from finetune_local.export.offers import BASE
from finetune_local.export.pipeline import free_place
from finetune_local.gui.i18n.translate import sentence
from finetune_local.gui.shell.answers import Answer
from finetune_local.gui.shell.selection import chosen_model
from finetune_local.gui.widgets import fields, parts
from finetune_local.gui.widgets.html import Html, h
from finetune_local.runtime.job import Job
from finetune_local.system.errors import SpecError
from finetune_local.system.files import free_bytes
from finetune_local.system.paths import located

if TYPE_CHECKING:
    from finetune_local.gui.shell.context import Context
    from finetune_local.gui.shell.windows import Window

TARGETS = ("gguf", "ollama", "merged", "adapter")
"""As they are shown: the most asked for first."""

FIRST = {"f16", "q8_0", "q5_k_m", "q4_k_m", "auto", "float16", "bfloat16", "folder", "zip"}
"""Formats that are shown at once."""

SMALL = 4_000_000_000
"""Bytes of an F16 file up to which F16 is recommended (2 billion parameters); above it Q8_0, and above four times that Q4_K_M."""

Rows = Sequence[Mapping[str, Any]]


def form_of(window: Window) -> dict[str, Any]:
    """The window's form: target, formats (by target), folder, gate."""
    usual: dict[str, Any] = {"target": "gguf", "formats": {}, "folder": "", "gate": True}
    return {**usual, **(window["export_form"] or {})}


def changed(window: Window, **values: Any) -> None:
    """Something of it was changed."""
    window.set(export_form={**form_of(window), **values})


def chosen_adapter(window: Window, adapters: Rows) -> str:
    """The adapter to export: the window's, else the newest; "base" for the base alone."""
    name = window["adapter"]
    if name == "" or any(row["name"] == name for row in adapters):
        return str(name) or BASE
    usable = [row for row in adapters if not row["problem"]]
    newest = max(usable, key=lambda row: row["created_time"] or 0, default=None)
    return str(newest["name"]) if newest else BASE


def asked(context: Context, window: Window, adapters: Rows) -> dict[str, Any]:
    """The request to the lookup process: see gui/lookups/calls/offers.py."""
    adapter = chosen_adapter(window, adapters)
    return {"adapter": adapter, "model": chosen_model(context, window) if adapter == BASE else None}


def begin(context: Context, window: Window, adapters: Rows, offers: Mapping[str, Any]) -> Job:
    """Start what the form says. Raises SpecError where it cannot be."""
    form, question = form_of(window), asked(context, window, adapters)
    target = _target(form, offers)
    chosen = _format(form, target, offers)
    if chosen is None:
        raise SpecError(offers["targets"][target]["reason"] or context.t("export.cannot_format"))
    return exports.begin(
        context.home,
        question["adapter"],
        question["model"],
        target,
        str(chosen["format"]),
        form["folder"],
        str(offers["name"]),
        gate=bool(form["gate"]),
    )


def card(context: Context, window: Window, adapters: Rows, answer: Answer) -> Html:
    """The form."""
    t = context.t
    adapter = chosen_adapter(window, adapters)
    row = next((row for row in adapters if row["name"] == adapter), None)
    names = [(str(row["name"]), str(row["name"])) for row in adapters]
    which = fields.select(
        t("export.adapter"),
        "adapter",
        "",
        [*names, ("", t("export.base_alone"))],
        "" if adapter == BASE else adapter,
        id="export-adapter",
        help=t("export.on_base", method=row["method"], base=row["base"]) if row else chosen_model(context, window),
    )
    body: list[Any] = [h("div", which, class_="field-grid one")]
    if answer.problem is not None:
        body.append(h("p", sentence(t, str(answer.problem)), class_="hint bad text", role="alert"))
    elif answer.value is None:
        body.append(parts.progress(t, context.f, t("export.looking"), None))
    else:
        body += _choices(context, window, answer.value)
    return parts.card(*body, title=t("export.what"))


def _choices(context: Context, window: Window, offers: Mapping[str, Any]) -> list[Any]:
    t, form = context.t, form_of(window)
    target = _target(form, offers)
    offer = offers["targets"][target]
    body: list[Any] = [h("h3", t("export.where_for")), _targets(context, target, offers)]
    if offer["reason"]:
        others = [t(f"export.target_{key}") for key in TARGETS if not offers["targets"][key]["reason"]]
        body.append(
            h(
                "div",
                h("strong", t("export.cannot_title")),
                h("p", sentence(t, offer["reason"]), class_="text"),
                h("p", t("export.can_instead", names=", ".join(others))) if others else None,
                class_="hint warn",
            )
        )
        return body
    body += [h("p", sentence(t, note), class_="hint text") for note in offer.get("notes") or ()]
    place = located(form["folder"]) if form["folder"].strip() else exports.folder_of(context.home)
    free = _free(place)
    chosen = _format(form, target, offers)
    body += [h("h3", t("export.format")), _formats(context, target, offer["formats"], chosen, free)]
    if chosen is None:
        return body
    name = str(offers["name"])
    out = free_place(place, target, name, str(chosen["format"])) if place.is_absolute() else None
    fits = free is None or chosen["bytes"] < free
    body += [
        h(
            "div",
            fields.path(
                t, t("export.folder"), "set", "folder", form["folder"], id="export-folder", pick="folder",
                placeholder=str(exports.folder_of(context.home)), help=_room(context, free),
            ),
            fields.check(t("export.gate"), "set", "gate", form["gate"], id="export-gate", help=t("export.gate_help")),
            class_="field-grid wide",
        ),
        h(
            "div",
            parts.button(
                t("export.start", size=context.f.size(chosen["bytes"])), "start", kind="primary", disabled=not fits
            ),
            h("span", t("export.will_be", name=out.name) if out else "", class_="soft grow"),
            class_="row form-end",
        ),
    ]  # fmt: skip
    return body


def _targets(context: Context, chosen: str, offers: Mapping[str, Any]) -> Html:
    t = context.t
    boxes: list[fields.Option] = []
    for key in TARGETS:
        reason = offers["targets"][key]["reason"]
        content = [
            h("strong", t(f"export.target_{key}")),
            h("span", t(f"export.target_{key}_text")),
            h("small", t("export.cannot"), class_="badge warn") if reason else None,
        ]
        boxes.append((key, content, True, {}))
    return fields.options(t("export.where_for"), "target", boxes, chosen, class_="targets")


def _formats(
    context: Context,
    target: str,
    formats: Sequence[Mapping[str, Any]],
    chosen: Mapping[str, Any] | None,
    free: int | None,
) -> Html:
    """The formats with what each is for and will take; the less usual ones folded."""
    t, f = context.t, context.f
    advised = recommended(target, formats)

    def box(form: Mapping[str, Any]) -> fields.Option:
        key, size, reason = str(form["format"]), form.get("bytes"), form.get("reason")
        too_big = size is not None and free is not None and size >= free
        words = sentence(t, reason) if reason else t(f"export.{_group(target)}_{key}")
        content = [
            h("strong", _name(context, key)),
            parts.badge(t("export.recommended"), "good") if key == advised else None,
            h("span", words, class_="grow"),
            h("span", t("export.too_big"), class_="bad") if too_big else None,
            h("b", f.size(size) if size is not None else "", class_="size"),
        ]
        return key, content, reason is None, {}

    now = str(chosen["format"]) if chosen else ""
    first = [box(form) for form in formats if form["format"] in FIRST]
    more = [box(form) for form in formats if form["format"] not in FIRST]
    label = t("export.format")
    folded = None
    if more:
        folded = h(
            "details",
            h("summary", t("export.more_formats")),
            fields.options(label, "format", more, now, class_="formats"),
            open=any(key == now for key, *_ in more),
            data_keep="formats",
        )
    return h("div", fields.options(label, "format", first, now, class_="formats"), folded)


def recommended(target: str, formats: Sequence[Mapping[str, Any]]) -> str:
    """The format to advise: small models lose much by few bits, large ones little."""
    if _group(target) != "gguf":
        return str(formats[0]["format"]) if formats else ""
    sizes = {form["format"]: form.get("bytes") for form in formats}
    full = sizes.get("f16") or 0
    wanted = "f16" if full <= SMALL else "q8_0" if full <= 4 * SMALL or sizes.get("q4_k_m") is None else "q4_k_m"
    return wanted if sizes.get(wanted) is not None else "f16"


def _target(form: Mapping[str, Any], offers: Mapping[str, Any]) -> str:
    return str(form["target"]) if form["target"] in offers["targets"] else TARGETS[0]


def _format(form: Mapping[str, Any], target: str, offers: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The format that is chosen, or advised; None where the target cannot be made."""
    formats: Sequence[Mapping[str, Any]] = [form for form in offers["targets"][target]["formats"] if "bytes" in form]
    wanted = form["formats"].get(target) or recommended(target, formats)
    return next((one for one in formats if one["format"] == wanted), formats[0] if formats else None)


def _group(target: str) -> str:
    return "gguf" if target == "ollama" else target


def _name(context: Context, key: str) -> str:
    if key in ("auto", "folder", "zip"):
        return context.t(f"export.name_{key}")
    return key if key.startswith(("float", "bfloat")) else key.upper()


def _free(place: Path) -> int | None:
    try:
        return free_bytes(place)
    except OSError:
        return None


def _room(context: Context, free: int | None) -> str:
    return context.t("export.room_none") if free is None else context.t("export.room", free=context.f.size(free))
