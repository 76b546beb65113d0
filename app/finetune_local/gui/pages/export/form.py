"""The form of the Export page: what to export, to which target, in which quantization type, where; and the job it starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_local.adapters.library import AdapterFacts
from finetune_local.export import job_export
from finetune_local.export.pipeline import BASE, Offers, QuantOffer, TargetOffer, free_place
from finetune_local.export.targets import Quant, Target, targets
from finetune_local.gui.i18n.strings import sentence
from finetune_local.gui.pages.export import view
from finetune_local.gui.pages.export.state import ExportForm, ExportState
from finetune_local.gui.shell.lookups import Answer
from finetune_local.gui.shell.pages import chosen_model
from finetune_local.gui.widgets import fields, parts
from finetune_local.gui.widgets.html import Child, Html, h
from finetune_local.gui.widgets.runlist import method_name
from finetune_local.runtime.job import Job
from finetune_local.system.errors import SpecError
from finetune_local.system.files import free_bytes
from finetune_local.system.messages import as_message
from finetune_local.system.paths import located

if TYPE_CHECKING:
    from finetune_local.gui.shell.context import Context
    from finetune_local.gui.shell.windows import Window

Rows = Sequence[AdapterFacts]


def chosen_adapter(window: Window, adapters: Rows) -> str:
    """The adapter to export: the window's selection, else the newest; "base" for the base alone."""
    name = window.shared.adapter
    if name == "" or any(row.name == name for row in adapters):
        return str(name) or BASE
    usable = [row for row in adapters if not row.problem]
    newest = max(usable, key=lambda row: row.created_time or 0, default=None)
    return str(newest.name) if newest else BASE


def source_of(context: Context, window: Window, adapters: Rows) -> tuple[str, str | None]:
    """The adapter to export (or BASE), and the base model if it is exported alone."""
    adapter = chosen_adapter(window, adapters)
    return adapter, chosen_model(context, window) if adapter == BASE else None


def start(context: Context, window: Window, adapters: Rows, offers: Offers) -> Job:
    """Start the export that the form describes. Raises SpecError."""
    form, (adapter, model) = window.state(ExportState).form, source_of(context, window, adapters)
    target = chosen_target(form)
    offer = offers.targets[target.key]
    chosen = _chosen(form, target, offer)
    if chosen is None:
        raise SpecError(as_message(offer.reason or context.t("export.no_quant")))
    return job_export.start(
        context.home,
        adapter,
        model,
        target.key,
        chosen.key,
        form.folder,
        offers.name,
        verification=form.verify,
    )


def card(context: Context, window: Window, adapters: Rows, answer: Answer) -> Html:
    """The form."""
    t = context.t
    adapter = chosen_adapter(window, adapters)
    row = next((row for row in adapters if row.name == adapter), None)
    names = [(str(row.name), str(row.name)) for row in adapters]
    which = fields.select(
        t("export.adapter"),
        "adapter",
        "",
        [*names, ("", t("export.base_alone"))],
        "" if adapter == BASE else adapter,
        id="export-adapter",
        help=t("export.on_base", method=method_name(t, row.method), base=row.base)
        if row
        else chosen_model(context, window),
    )
    body: list[Child] = [h("div", which, class_="field-grid one")]
    if answer.problem is not None:
        body.append(h("p", sentence(t, answer.problem), class_="hint bad text", role="alert"))
    elif answer.value is None:
        body.append(parts.progress(t, context.f, t("export.checking"), None))
    else:
        body += _choices(context, window, Offers.from_json(answer.value))
    return parts.card(*body, title=t("export.what"))


def _choices(context: Context, window: Window, offers: Offers) -> list[Child]:
    t, form = context.t, window.state(ExportState).form
    target = chosen_target(form)
    offer = offers.targets[target.key]
    body: list[Child] = [h("h3", t("export.target")), _targets(context, target, offers)]
    if offer.reason:
        return [*body, _refusal(context, offer, offers)]
    body += [h("p", sentence(t, note), class_="hint text") for note in offer.notes]
    place = located(form.folder) if form.folder.strip() else job_export.folder_of(context.home)
    free = _free(place)
    chosen = _chosen(form, target, offer)
    body += [h("h3", view.quants_title(t, target)), _quants(context, target, offer, chosen, free)]
    if chosen is None or chosen.bytes is None:
        return body
    out = free_place(place, target.key, offers.name, chosen.key) if place.is_absolute() else None
    fits = free is None or chosen.bytes < free
    start = t("export.start", size=context.f.size(chosen.bytes))
    return [
        *body,
        h(
            "div",
            fields.path(
                t, t("export.folder"), "set", "folder", form.folder, id="export-folder", pick="folder",
                placeholder=str(job_export.folder_of(context.home)), help=_room(context, free),
            ),
            fields.check(t("export.verify"), "set", "verify", form.verify, id="export-verify", help=t("export.verify_help")),
            class_="field-grid wide",
        ),
        h(
            "div",
            parts.button(start, "start", kind="primary", disabled=not fits),
            h("span", t("export.saved_as", name=out.name) if out else "", class_="soft grow"),
            class_="row form-end",
        ),
    ]  # fmt: skip


def _refusal(context: Context, offer: TargetOffer, offers: Offers) -> Html:
    """Why the selected target is not possible, and which targets are."""
    t = context.t
    others = [view.target_title(t, target) for key, target in targets().items() if not offers.targets[key].reason]
    return h(
        "div",
        h("strong", t("export.cannot_title")),
        h("p", sentence(t, offer.reason), class_="text"),
        h("p", t("export.possible_targets", names=", ".join(others))) if others else None,
        class_="hint warn",
    )


def _targets(context: Context, chosen: Target, offers: Offers) -> Html:
    t = context.t
    boxes: list[fields.Option] = []
    for key, target in targets().items():
        content = [
            h("strong", view.target_title(t, target)),
            h("span", view.target_summary(t, target)),
            h("small", t("export.cannot"), class_="badge warn") if offers.targets[key].reason else None,
        ]
        boxes.append((key, content, True, {}))
    return fields.options(t("export.target"), "target", boxes, chosen.key, class_="targets")


def _quants(context: Context, target: Target, offer: TargetOffer, chosen: QuantOffer | None, free: int | None) -> Html:
    """The quantization types with their purpose and size; less common ones are collapsed."""
    t, now = context.t, chosen.key if chosen else ""
    offered = {quant.key: quant for quant in offer.quants}
    boxes = [(quant.common, _quant_box(context, quant, offered[quant.key], offer, free)) for quant in target.quants]
    first, more = ([box for common, box in boxes if common is common_first] for common_first in (True, False))
    label = view.quants_title(t, target)
    folded = None
    if more:
        folded = h(
            "details",
            h("summary", t("export.more_quants")),
            fields.options(label, "quant", more, now, class_="formats"),
            open=any(key == now for key, *_ in more),
            data_keep="formats",
        )
    return h("div", fields.options(label, "quant", first, now, class_="formats"), folded)


def _quant_box(
    context: Context, quant: Quant, offered: QuantOffer, offer: TargetOffer, free: int | None
) -> fields.Option:
    t, size = context.t, offered.bytes
    too_big = size is not None and free is not None and size >= free
    content = [
        h("strong", view.quant_title(t, quant)),
        parts.badge(t("export.recommended"), "good") if quant.key == offer.recommended else None,
        h("span", sentence(t, offered.reason) if offered.reason else view.quant_summary(t, quant), class_="grow"),
        h("span", t("export.too_big"), class_="bad") if too_big else None,
        h("b", context.f.size(size) if size is not None else "", class_="size"),
    ]
    return quant.key, content, size is not None, {}


def chosen_target(form: ExportForm) -> Target:
    """The selected target, else the first."""
    return targets().get(form.target) or next(iter(targets().values()))


def _chosen(form: ExportForm, target: Target, offer: TargetOffer) -> QuantOffer | None:
    """The selected quantization type, else the recommended one; None if none can be written."""
    possible = {quant.key: quant for quant in offer.possible()}
    return possible.get(form.formats.get(target.key, "")) or possible.get(offer.recommended or "")


def _free(place: Path) -> int | None:
    try:
        return free_bytes(place)
    except OSError:
        return None


def _room(context: Context, free: int | None) -> str:
    return context.t("export.no_disk") if free is None else context.t("export.free_space", free=context.f.size(free))
