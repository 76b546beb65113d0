"""The downloads on the Model page: each with its progress and its buttons."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_local.gui.i18n.formats import Formats
from finetune_local.gui.i18n.strings import Strings
from finetune_local.gui.i18n.translate import sentence
from finetune_local.gui.widgets import jobview, parts
from finetune_local.gui.widgets.html import Child, Html, h
from finetune_local.models.catalog import entry
from finetune_local.models.download import is_place
from finetune_local.runtime.job import Job, JobState
from finetune_local.runtime.status import Status
from finetune_local.spec.run import DEFAULT_MODEL


def view(t: Strings, f: Formats, jobs: Sequence[Job]) -> Html:
    """All downloads; empty where there is none."""
    if not jobs:
        return Html("")
    rows = [h("li", _one(t, f, job), data_job=job.name) for job in jobs]
    return parts.card(h("ul", rows, class_="plain"), title=t("model.downloads"), class_="downloads", aria_live="off")


def what_of(job: Job) -> str:
    """What a job downloads: ORG/NAME, a path, or the default's short name."""
    return str(job.arguments["what"])


def busy(jobs: Sequence[Job]) -> set[str]:
    """What is being downloaded now."""
    return {what_of(job) for job in jobs if jobview.active(job.state())}


def _one(t: Strings, f: Formats, job: Job) -> Html:
    what, state = what_of(job), job.state()
    known = entry(what)
    name = known.name if known is not None else what
    working, paused = jobview.active(state), state.status is Status.PAUSED
    again = what == DEFAULT_MODEL or is_place(what)  # these cannot be resumed
    if working:
        pausing = job.stop_file.exists()
        badge = parts.badge(t("model.state_pausing" if pausing else "model.state_running"), "live")
        label = t("common.stop" if again else "model.pause")
        first = parts.button(label, "pause", job.name, kind="small", disabled=pausing)
    elif paused:
        badge = parts.badge(t("model.state_stopped" if again else "model.state_paused"), "warn")
        label = t("model.start_over" if again else "model.resume")
        first = parts.button(label, "resume", job.name, kind="small primary")
    else:
        badge = parts.badge(t("model.state_failed"), "bad")
        first = parts.button(t("model.retry"), "resume", job.name, kind="small primary")
    sure = t("model.cancel_sure", name=name)
    last = parts.button(t("model.cancel"), "cancel", job.name, kind="small quiet danger", confirm=sure)
    body: Child
    if working or paused:
        body = parts.progress(t, f, _so_far(t, f, state), state.done if state.text else None, _left(state))
        if paused and again and not is_place(what):
            body = [h("p", t("model.starts_over"), class_="soft")]
    else:
        message = state.error.message if state.error else ""
        body = h("p", sentence(t, message), class_="hint bad text", role="alert")
    return h("div", h("div", h("strong", name, class_="grow"), badge, first, last, class_="row"), body)


def _so_far(t: Strings, f: Formats, state: JobState) -> str:
    facts = state.facts
    if not facts.get("total"):
        return sentence(t, state.text) or t("model.beginning")
    text = t("model.so_far", here=f.size(facts["here"]), total=f.size(facts["total"]))
    if facts.get("rate") and state.status is Status.RUNNING:
        text += " · " + t("model.speed", speed=f.size(facts["rate"]))
    return text


def _left(state: JobState) -> float | None:
    return state.seconds_left if state.status is Status.RUNNING else None
