"""The trash at the foot of a list: what was removed, with a button to restore each; and the notice with an undo button."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from finetune_local.gui.i18n.translate import sentence
from finetune_local.gui.shell import notice
from finetune_local.gui.widgets import parts
from finetune_local.gui.widgets.html import Html, h, join
from finetune_local.system import trash
from finetune_local.system.trash import Removed
from finetune_local.system.untrusted.text import ForeignTextError, parse_json
from finetune_local.workspace import adapters

if TYPE_CHECKING:
    from finetune_local.gui.shell.context import Context


def box(context: Context, kind: str) -> Html:
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
        class_="trash-box",
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
    """Restore what a button of removed_notice() or of the box names; returns the names."""
    return adapters.put_back(keys(value), context.home)


def keys(value: str) -> list[str]:
    """What a button of removed_notice() or of the box names: keys of the trash."""
    try:
        found = parse_json(value) if value.startswith("[") else [value]
    except ForeignTextError:
        found = [value]
    return [str(key) for key in found]


def empty(context: Context, kind: str) -> None:
    """Permanently delete the trash of one kind."""
    trash.empty(context.home, trash.every(context.home, kind))
