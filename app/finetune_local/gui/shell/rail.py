"""What stands around the pages: the brand, and at the foot of the rail the runs and jobs that are running."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetune_local.gui.shell.pages import RUN, page_showing
from finetune_local.gui.widgets import parts
from finetune_local.gui.widgets.html import Html, h, join
from finetune_local.runtime import job, process_folder
from finetune_local.training.run_folder import runs

if TYPE_CHECKING:
    from finetune_local.gui.shell.context import Context
    from finetune_local.gui.shell.windows import Window


def build(context: Context) -> Any:
    """The brand above the rail, and the foot below it, which is returned to be wired once the pages are there."""
    t = context.t
    parts.view(
        join(
            [
                h("a", t("common.skip"), href="#nav", class_="skip"),
                h("div", h("img", src="ftl/icon.svg", alt=""), h("span", t("common.app")), class_="brand"),
            ]
        ),
        id="brand",
    )
    return parts.view(id="foot")


def wire(context: Context, foot: Any) -> None:
    """Show at the foot what is running, and go to its page when it is pressed."""
    import gradio as gr

    def tick(window: Window) -> Any:
        shown = join([*running(context), h("p", context.t("common.private"), class_="private")])
        return shown if window.changed("foot", shown) else gr.skip()

    def press(window: Window, event: Any) -> Any:
        _, page, data = parts.pressed(event)
        window.shared.run = data.get("run", window.shared.run)
        return context.go(window, page)

    context.on_tick(None, tick, foot)
    context.on(foot.click, press, None, context.nav)


def running(context: Context) -> list[Html]:
    """A line for every running run and job."""
    t, f = context.t, context.f
    process_folder.reap()  # workers that this server started
    found = []
    for run in runs.running(context.home):
        # The last step and no more: a long run's whole history would keep every page waiting when the app is opened.
        step = next((line for line in run.newest() if line.get("event") == "step"), {})
        share = step["step"] / step["steps"] if step.get("steps") else None
        inner = parts.progress(t, f, run.name, share, step.get("seconds_left"))
        found.append(
            h(
                "button",
                inner,
                type="button",
                class_="at-work",
                data_do="go",
                data_value=page_showing(RUN),
                data_run=run.name,
            )
        )
    for working in job.running(context.home):
        state = working.state()
        inner = parts.progress(t, f, t(f"jobs.{working.kind}"), state.done, state.seconds_left)
        found.append(
            h("button", inner, type="button", class_="at-work", data_do="go", data_value=page_showing(working.kind))
        )
    return found
