"""What cannot be read of the app's own things, with the reason and a button that takes it away; shown below the sound ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from finetune_local.gui.i18n.strings import Strings
from finetune_local.gui.i18n.translate import sentence
from finetune_local.gui.widgets import parts
from finetune_local.gui.widgets.html import Html, h
from finetune_local.runtime import jobs
from finetune_local.runtime.kinds import JobKind
from finetune_local.system.damaged import Damaged

if TYPE_CHECKING:
    from finetune_local.gui.shell.context import Context

_FORGET = "damaged.job"


def box(t: Strings, found: Sequence[Damaged], do: str) -> Html:
    """Nothing where nothing is damaged. `do` is what the page does when one is to be taken away."""
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
    """Do what a button of jobs() asks for; False where it was another one."""
    if do != _FORGET:
        return False
    jobs.remove(jobs.find(context.home, value))
    return True
