"""The trash at the foot of a list: what was removed, with a button to restore each; and the notice with an undo button."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from finetune_local.gui.i18n.translate import sentence
from finetune_local.gui.widgets import notice, parts
from finetune_local.gui.widgets.html import Html, h, join
from finetune_local.system import trash
from finetune_local.system.trash import Removed
from finetune_local.system.untrusted.text import ForeignTextError, parse_json
from finetune_local.workspace import adapters

if TYPE_CHECKING:
    from finetune_local.gui.shell.context import Context


from typing import TYPE_CHECKING

from finetune_local.gui.i18n.strings import Strings
from finetune_local.runtime import jobs
from finetune_local.runtime.kinds import JobKind
from finetune_local.system.errors import Damaged

if TYPE_CHECKING:
    from finetune_local.gui.shell.context import Context


def trash_box(context: Context, kind: str) -> Html:
    """The trash of one kind; empty where there is none."""
    t, f = context.t, context.f
    found = trash.every(context.home, kind)
    bad = [h("p", sentence(t, one.problem), class_="soft") for one in trash.damaged(context.home)]
    if not found:
        return join(bad)
    sizes = [removed.bytes_on_disk for removed in found]
    rows = [
        h(
            "li",
            h("span", removed.name, class_="grow"),
            h("small", f.moment(removed.when)),
            h("small", f.size(size)),
            parts.button(t("lists.restore"), "trash.back", removed.key, kind="small"),
        )
        for removed, size in zip(found, sizes, strict=True)
    ]
    empty = parts.button(
        t("lists.empty_trash"),
        "trash.empty",
        kind="small danger",
        confirm=t("lists.empty_confirm", n=f.number(len(found)), size=f.size(sum(sizes))),
    )
    return h(
        "details",
        h("summary", t("lists.trash", n=f.number(len(found)), size=f.size(sum(sizes)))),
        h("ul", rows, class_="trash-list"),
        empty,
        bad,
        class_="trash-trash_box",
        data_keep=f"trash-{kind}",
    )


def removed_notice(context: Context, removed: Sequence[Removed], undo: str) -> Html:
    """A notice that something was moved to the trash, with an undo button (`undo` is its data-do; see context.on_notice)."""
    t = context.t
    name = removed[0].name if len(removed) == 1 else ""
    title = t("lists.removed_one", name=name) if name else t("lists.removed_many", n=context.f.number(len(removed)))
    keys = json.dumps([one.key for one in removed])
    return notice.good(t, title, "", parts.button(t("common.undo"), undo, keys, kind="small"))


def put_back(context: Context, value: str) -> list[str]:
    """Restore what a button of removed_notice() or of the trash_box names; returns the names."""
    return adapters.put_back(trash_keys(value), context.home)


def trash_keys(value: str) -> list[str]:
    """What a button of removed_notice() or of the trash_box names: keys of the trash."""
    try:
        found = parse_json(value) if value.startswith("[") else [value]
    except ForeignTextError:
        found = [value]
    return [str(key) for key in found]


def empty_trash(context: Context, kind: str) -> None:
    """Permanently delete the trash of one kind."""
    trash.empty(context.home, trash.every(context.home, kind))


_FORGET = "damaged.job"


def damaged_box(t: Strings, found: Sequence[Damaged], do: str) -> Html:
    """Empty where nothing is damaged. `do` is the action that removes an item."""
    if not found:
        return Html("")
    items = [
        h(
            "li",
            h("div", h("strong", one.name), h("p", sentence(t, one.problem), class_="text"), class_="grow"),
            parts.button(t("common.delete"), do, one.name, kind="small danger"),
        )
        for one in found
    ]
    return h("div", h("h3", t("lists.damaged")), h("ul", items, class_="trash-list"), class_="hint bad", role="alert")


def damaged_jobs(context: Context, kind: JobKind) -> Html:
    """The damaged jobs of a kind; remove_damaged_job() removes them."""
    return damaged_box(context.t, jobs.damaged(context.home, kind), _FORGET)


def remove_damaged_job(context: Context, do: str, value: str) -> bool:
    """Handle a button of jobs(); False where it was another one."""
    if do != _FORGET:
        return False
    jobs.remove(jobs.find(context.home, value))
    return True
