"""What stands below a list: the trash, with a button to restore each item; items that cannot be read, with a button to remove each; and
the notice after a removal, with an undo button."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from finetune_local.gui.i18n.strings import Strings, sentence
from finetune_local.gui.widgets import parts
from finetune_local.gui.widgets.html import Html, h, join
from finetune_local.runtime import jobs
from finetune_local.runtime.kinds import JobKind
from finetune_local.system import trash
from finetune_local.system.errors import Damaged
from finetune_local.system.trash import Removed
from finetune_local.system.untrusted.text import ForeignTextError, parse_json
from finetune_local.workspace import adapters

if TYPE_CHECKING:
    from finetune_local.gui.shell.context import Context

_REMOVE_JOB = "damaged.job"


def trash_box(context: Context, kind: str) -> Html:
    """The trash of one kind of item; empty if the trash is."""
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
        class_="trash-box",
        data_keep=f"trash-{kind}",
    )


def removed_notice(context: Context, removed: Sequence[Removed], undo: str) -> Html:
    """A notice that items were moved to the trash. `undo` is the data-do of its undo button; see Context.on_notice."""
    t = context.t
    name = removed[0].name if len(removed) == 1 else ""
    title = t("lists.removed_one", name=name) if name else t("lists.removed_many", n=context.f.number(len(removed)))
    keys = json.dumps([one.key for one in removed])
    return parts.success_notice(t, title, "", parts.button(t("common.undo"), undo, keys, kind="small"))


def put_back(context: Context, value: str) -> list[str]:
    """Restore the items of a button of removed_notice() or trash_box(). Returns their names."""
    return adapters.put_back(trash_keys(value), context.home)


def trash_keys(value: str) -> list[str]:
    """The keys of the trash in the value of a button of removed_notice() or trash_box()."""
    try:
        found = parse_json(value) if value.startswith("[") else [value]
    except ForeignTextError:
        found = [value]
    return [str(key) for key in found]


def empty_trash(context: Context, kind: str) -> None:
    """Permanently delete the trash of one kind of item."""
    trash.empty(context.home, trash.every(context.home, kind))


def damaged_box(t: Strings, found: Sequence[Damaged], do: str) -> Html:
    """The items that cannot be read, with the reasons; empty if there are none. `do` is the data-do of the buttons that remove one."""
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
    """The damaged jobs of a kind. Their buttons are handled by remove_damaged_job()."""
    return damaged_box(context.t, jobs.damaged(context.home, kind), _REMOVE_JOB)


def remove_damaged_job(context: Context, do: str, value: str) -> bool:
    """Handle a button of damaged_jobs(). Returns False if the button is another one."""
    if do != _REMOVE_JOB:
        return False
    jobs.remove(jobs.find(context.home, value))
    return True
