"""What stands around the pages: the brand, and at the rail's foot what is running, whatever page is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetune_local.gui.widgets import parts
from finetune_local.gui.widgets.html import Html, h, join
from finetune_local.runtime import start
from finetune_local.runtime.job import Job
from finetune_local.runtime.kinds import kind_of
from finetune_local.training.events import Step
from finetune_local.workspace import work

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
        kind, name, _ = parts.pressed(event)
        return context.go_to_work(window, kind_of(kind), name)

    context.on_tick(None, tick, foot)
    context.on(foot.click, press, None, context.nav)


def running(context: Context) -> list[Html]:
    """A line for every running run and job."""
    t, f = context.t, context.f
    start.reap()  # workers that this server started
    found = []
    for folder in work.running(context.home):
        if isinstance(folder, Job):
            state = folder.state()
            text, done, left = t(f"jobs.{folder.kind.key}"), state.done, state.seconds_left
        else:
            # The last step only: reading a long run's whole history would delay every page when the app is opened.
            step = next((line for line in folder.newest() if line.get("event") == Step.kind), {})
            text, done = folder.name, step["step"] / step["steps"] if step.get("steps") else None
            left = step.get("seconds_left")
        inner = parts.progress(t, f, text, done, left)
        value = {"data_do": folder.kind.key, "data_value": folder.name}
        found.append(h("button", inner, type="button", class_="at-work", **value))
    return found
