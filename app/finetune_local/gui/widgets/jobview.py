"""How pages show a job: what it does, its progress, a button to stop it, and why it failed."""

from __future__ import annotations

import time

from finetune_local.gui.i18n.formats import Formats
from finetune_local.gui.i18n.strings import Strings, sentence
from finetune_local.gui.widgets import parts
from finetune_local.gui.widgets.html import Child, Html, h
from finetune_local.runtime.job import Job, JobState
from finetune_local.runtime.status import Status

STARTING_SECONDS = 10.0
"""Time for which a job without a process counts as starting."""


def active(state: JobState) -> bool:
    """Whether a job is running or starting."""
    starting = state.status is Status.QUEUED or state.killed
    return state.status is Status.RUNNING or (starting and 0 <= time.time() - state.began < STARTING_SECONDS)


def working(t: Strings, f: Formats, job: Job, title: str, doing: str, *, more: Child = None) -> Html:
    """The card of a running job. `doing` says what it does now."""
    state, stopping = job.state(), job.stop_file.exists()
    stop = parts.button(
        t("jobs.stopping") if stopping else t("common.stop"), "job.stop", job.name, kind="small", disabled=stopping
    )
    return parts.card(
        h("div", h("strong", title, class_="grow"), parts.badge(t("jobs.running"), "live"), stop, class_="row"),
        parts.progress(t, f, doing[:1].upper() + doing[1:] or t("jobs.starting"), state.done, state.seconds_left),
        notes(t, state),
        more,
        class_="job",
        data_job=job.name,
    )


def notes(t: Strings, state: JobState) -> Html | None:
    """The notes of a job; None if there are none."""
    if not state.notes:
        return None
    return h("ul", [h("li", sentence(t, note), class_="text") for note in state.notes], class_="job-notes soft")


def problem(t: Strings, state: JobState, *more: Child) -> Html | None:
    """Why a job failed: a sentence, and for a defect its traceback. None if it did not fail."""
    if state.error is None:
        return None
    trace = state.error.traceback
    message = h("p", sentence(t, state.error.message), class_="text")
    details = h("details", h("summary", t("errors.show_details")), h("pre", trace, tabindex="0")) if trace else None
    return h("div", message, details, more, class_="hint bad", role="alert")
