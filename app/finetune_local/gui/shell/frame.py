"""The frame around the pages: the brand, what is running at the foot of the rail, and above the pages a notice for each run or job
that has ended."""

from __future__ import annotations

from typing import Any

from finetune_local.gui.i18n.strings import Strings
from finetune_local.gui.shell.context import Context
from finetune_local.gui.shell.ended import Ended
from finetune_local.gui.shell.pages import go_to_work, shows_work
from finetune_local.gui.shell.windows import Window
from finetune_local.gui.widgets import parts
from finetune_local.gui.widgets.html import Html, h, join
from finetune_local.gui.widgets.parts import notice
from finetune_local.runtime import start
from finetune_local.runtime.job import Job
from finetune_local.runtime.kinds import kind_of
from finetune_local.training.events import Step
from finetune_local.workspace import work


def build(context: Context) -> Any:
    """Add the brand above the rail and the foot below it. Returns the foot, for wire()."""
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
    """Show running work at the foot; a press on it opens its page. Called once the pages are built."""
    import gradio as gr

    def tick(window: Window) -> Any:
        shown = join([*running(context), h("p", context.t("common.private"), class_="private")])
        return shown if window.changed("foot", shown) else gr.skip()

    def press(window: Window, event: Any) -> Any:
        kind, name, _ = parts.pressed(event)
        return go_to_work(context, window, kind_of(kind), name)

    context.on_tick(None, tick, foot)
    context.on(foot.click, press, None, context.nav)


def running(context: Context) -> list[Html]:
    """One line for each running run and job."""
    t, f = context.t, context.f
    start.reap()  # workers that this server started
    found = []
    for folder in work.running(context.home):
        if isinstance(folder, Job):
            state = folder.state()
            text, done, left = t(f"jobs.{folder.kind.key}"), state.done, state.seconds_left
        else:
            # Only the last step: reading the whole history of a long run would delay every page.
            step = next((line for line in folder.newest() if line.get("event") == Step.kind), {})
            text, done = folder.name, step["step"] / step["steps"] if step.get("steps") else None
            left = step.get("seconds_left")
        inner = parts.progress(t, f, text, done, left)
        value = {"data_do": folder.kind.key, "data_value": folder.name}
        found.append(h("button", inner, type="button", class_="running-work", **value))
    return found


def build_endings() -> Any:
    """Add the view above the pages that shows what ended."""
    return parts.view(id="ended")


def wire_endings(context: Context, view: Any) -> None:
    """Show what ends, one notice at a time, and handle its buttons."""
    import gradio as gr

    shown_up_to: dict[str, int] = {}
    waiting: dict[str, list[Ended]] = {}

    def tick(window: Window) -> Any:
        context.endings.update()
        if not window.name:  # the page has not attached to its window yet
            return gr.skip()
        # Work that ended before any window was open is shown by the first window only.
        since = shown_up_to.setdefault(window.name, max(shown_up_to.values(), default=0))
        for ended in context.endings.since(since):
            shown_up_to[window.name] = ended.number
            if not shows_work(window, ended.kind, ended.name):
                waiting.setdefault(window.name, []).append(ended)
        return shown(window)

    def shown(window: Window) -> Any:
        found = waiting.get(window.name)
        html = _ending(context.t, found[-1]) if found else Html("")
        return html if window.changed("ended", html) else gr.skip()

    def press(window: Window, event: Any) -> Any:
        do, _, _ = parts.pressed(event)
        found = waiting.get(window.name)
        if not found:
            return shown(window), gr.skip()
        ended = found.pop()
        if do == "retry":
            work.restart(ended.folder, context.home)
        if do == "chat":
            window.shared.adapters = (ended.name,)
            return shown(window), context.go(window, "chat")
        if do in ("see", "retry"):
            return shown(window), go_to_work(context, window, ended.kind, ended.name)
        return shown(window), gr.skip()

    context.on_tick(None, tick, view)
    context.on(view.click, press, None, [view, context.nav])


def _ending(t: Strings, ended: Ended) -> Html:
    buttons = [parts.button(t("ended.show"), "see", kind="small")]
    if ended.finished and ended.kind.makes_adapter:
        buttons.insert(0, parts.button(t("ended.chat"), "chat", kind="small primary"))
    if not ended.finished:
        retry = t.get(f"ended.{ended.kind.key}_retry") or t("ended.retry")
        buttons.append(parts.button(retry, "retry", kind="small"))
    return notice(t, "good" if ended.finished else "bad", ended.title(t), ended.text(t), *buttons)
