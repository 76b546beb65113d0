"""Home: the first steps, recent runs, this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetune_local.gui.i18n.strings import sentence
from finetune_local.gui.shell.pages import pages
from finetune_local.gui.widgets import parts
from finetune_local.gui.widgets.html import Html, h, join
from finetune_local.gui.widgets.runview import status_of
from finetune_local.training.run_folder import facts, runs

if TYPE_CHECKING:
    from finetune_local.gui.shell.context import Context
    from finetune_local.gui.shell.windows import Window

TITLE, ORDER = "nav.home", 0
RECENT = 5


def build(context: Context) -> None:
    """Build the page (see gui/shell/main.py)."""
    import gradio as gr

    view = parts.view(id="home")

    def draw(window: Window) -> Any:
        shown = _page(context, window)
        return shown if window.changed("home", shown) else gr.skip()

    def press(window: Window, event: Any) -> Any:
        do, value, _ = parts.pressed(event)
        if do == "refresh":
            context.machine.refresh()
            return _page(context, window), gr.skip()
        if do == "run":
            window.shared.run = value
            return gr.skip(), context.go(window, "train")
        return gr.skip(), context.go(window, value)

    context.on_show("home", draw, view)
    context.on_tick("home", draw, view)
    context.on(view.click, press, None, [view, context.nav])


def _page(context: Context, window: Window) -> Html:
    t = context.t
    steps = {page.key: page.completed(context, window) for page in pages().values() if page.completed is not None}
    done = {step for step, completed in steps.items() if completed}
    following = next((step for step in steps if step not in done), next(iter(steps)))
    label = t("home.continue") if done else t("home.begin")
    top = parts.header(t("home.title"), t("home.lead"), parts.button(label, "go", following, kind="primary"))
    listed = h(
        "ol",
        [
            h(
                "li",
                h(
                    "button",
                    h("b", str(number), aria_hidden="true"),
                    h("strong", t(f"home.step_{step}")),
                    h("span", t(f"home.step_{step}_text"), class_="soft"),
                    parts.badge(t("home.completed"), "good") if step in done else None,
                    type="button",
                    data_do="go",
                    data_value=step,
                ),
                class_="done" if step in done else "next" if step == following else "",
            )
            for number, step in enumerate(steps, 1)
        ],
        class_="steps",
    )
    return join([top, listed, h("div", _recent(context), _machine(context), class_="columns")])


def _recent(context: Context) -> Html:
    t, f = context.t, context.f
    rows = []
    for run in runs.every(context.home)[:RECENT]:
        row = facts.facts_of(run)
        rows.append(
            h(
                "li",
                h(
                    "button",
                    h("strong", row.run),
                    status_of(t, row),
                    h("span", f"{row.method or ''} · {row.model or ''}", class_="soft grow"),
                    h(
                        "span",
                        f.loss(row.last_loss) if row.last_loss is not None else "",
                        class_="soft",
                    ),
                    h("span", f.moment(row.changed_time), class_="soft"),
                    type="button",
                    data_do="run",
                    data_value=row.run,
                ),
            )
        )
    body = h("ul", rows, class_="list") if rows else h("p", t("home.no_runs"), class_="soft")
    more = parts.button(t("home.all_runs"), "go", "runs", kind="quiet small") if rows else None
    return parts.card(body, more, title=t("home.recent"))


def _machine(context: Context) -> Html:
    t, f, machine = context.t, context.f, context.machine
    again = parts.button(t("home.refresh"), "refresh", kind="quiet small", disabled=machine.refreshing)
    if not machine.facts:
        text = sentence(t, machine.problem) if machine.problem else t("home.checking")
        return parts.card(h("p", text, class_="soft"), again if machine.problem else None, title=t("home.machine"))
    facts_, device = machine.facts, machine.device()
    pairs = [
        (t("home.compute_device"), f"{device.name} ({machine.backend})" if device else t("home.no_backend")),
        (
            t("home.memory"),
            t("home.memory_value", total=f.size(facts_["memory_bytes"]), free=f.size(facts_["memory_free_bytes"])),
        ),
        (t("home.processors"), f.number(facts_["processors"])),
        (t("home.disk"), t("home.disk_value", free=f.size(facts_["disk_free_bytes"]))),
    ]
    notes = [h("p", sentence(t, note), class_="hint") for note in facts_["notes"]]
    return parts.card(parts.facts(pairs), *notes, again, title=t("home.machine"))
