"""Items of the app that cannot be read, each with the reason and a button that removes it; shown below the intact ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from finetune_local.gui.i18n.strings import Strings
from finetune_local.gui.i18n.translate import sentence
from finetune_local.gui.widgets import parts
from finetune_local.gui.widgets.html import Html, h
from finetune_local.runtime import jobs
from finetune_local.runtime.kinds import JobKind
from finetune_local.system.errors import Damaged

if TYPE_CHECKING:
    from finetune_local.gui.shell.context import Context

_FORGET = "damaged.job"


def box(t: Strings, found: Sequence[Damaged], do: str) -> Html:
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


def of_jobs(context: Context, kind: JobKind) -> Html:
    """The damaged jobs of a kind; pressed() removes them."""
    return box(context.t, jobs.damaged(context.home, kind), _FORGET)


def pressed(context: Context, do: str, value: str) -> bool:
    """Handle a button of jobs(); False where it was another one."""
    if do != _FORGET:
        return False
    jobs.remove(jobs.find(context.home, value))
    return True
