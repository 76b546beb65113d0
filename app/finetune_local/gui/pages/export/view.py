"""Views of exports: verification, how to use them, errors; and the texts of targets in the window's language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_local.export.pipeline import FAILED
from finetune_local.export.targets import Target, targets
from finetune_local.gui.i18n.formats import Formats
from finetune_local.gui.i18n.strings import Strings, sentence
from finetune_local.gui.widgets import jobview, parts
from finetune_local.gui.widgets.html import Child, Html, h
from finetune_local.runtime.job import Job, JobState
from finetune_local.runtime.status import Status

if TYPE_CHECKING:
    from finetune_local.export.targets import Command, Quant, Target
    from finetune_local.gui.i18n.strings import Strings


_NOT_VERIFIED = ("GateFailed", "VerificationFailed")
"""The error of an export that failed verification; the first name is that of earlier versions."""


def history(t: Strings, f: Formats, jobs: Sequence[Job]) -> Html:
    """The ended exports, newest first, each collapsed."""
    items = [
        h(
            "li",
            h("details", h("summary", _head(t, f, found)), _body(t, f, found), data_keep=found.name),
            data_job=found.name,
        )
        for found in jobs
    ]
    return parts.card(h("ul", items, class_="plain exports"), title=t("export.history"))


def ended(t: Strings, f: Formats, found: Job) -> Html:
    """An export that has just ended, in full."""
    close = parts.button(t("common.close"), "job.close", found.name, kind="small quiet")
    return parts.card(
        _head(t, f, found), _body(t, f, found, close), class_="export-ended", data_job=found.name, role="status"
    )


def _head(t: Strings, f: Formats, found: Job) -> Html:
    state = found.state()
    size = t("export.files", n=len(state.result["files"]), size=f.size(state.result["bytes"])) if state.result else ""
    return h(
        "div",
        h("strong", Path(found.arguments["out"]).name, class_="grow name"),
        _badge(t, state),
        h("span", size, class_="soft"),
        h("span", f.moment(found.spec.created), class_="soft"),
        class_="row",
    )


def _body(t: Strings, f: Formats, found: Job, *more: Child) -> Html:
    """The verification and how to use the export, or why it cannot be used."""
    state, arguments = found.state(), found.arguments
    out = Path(arguments["out"])
    failed = out.with_name(out.name + FAILED)
    there, kept = out.exists(), state.status is Status.FAILED and failed.exists()
    body: list[Child] = []
    if state.result and there:
        body.append(_checks(t, f, state.result["gate"]))
        if (target := targets().get(str(arguments["target"]))) is not None:
            body.append(_use(t, target, out, [Path(name) for name in state.result["files"]]))
    elif state.result:
        body.append(h("p", t("export.gone"), class_="soft"))
    else:
        body.append(jobview.problem(t, state, h("p", t("export.failed_kept", path=str(failed))) if kept else None))
    buttons = [
        parts.button(t("export.open_folder"), "open", found.name, kind="small") if there or kept else None,
        parts.button(t("ended.retry"), "job.again", found.name, kind="small")
        if not state.result and not kept
        else None,
        more or parts.button(t("export.forget"), "job.forget", found.name, kind="small quiet"),
    ]
    return h("div", body, h("div", buttons, class_="row"), class_="stack")


def _badge(t: Strings, state: JobState) -> Html:
    if state.result is not None:
        verification = state.result["gate"]
        return parts.badge(
            t("export.verified" if verification.get("passed") else "export.not_verified"),
            "good" if verification.get("passed") else "warn",
        )
    if state.error is not None and state.error.error in _NOT_VERIFIED:
        return parts.badge(t("export.verification_failed"), "bad")
    stopped = state.status is Status.STOPPED
    return parts.badge(t("export.stopped" if stopped else "export.failed"), "warn" if stopped else "bad")


def _checks(t: Strings, f: Formats, verification: Mapping[str, Any]) -> Html:
    """The result of the verification."""
    if verification.get("passed") is None:
        return h("p", sentence(t, verification.get("reason") or ""), class_="hint warn text")
    if verification.get("tensors"):
        results = [t("export.check_adapter", n=f.number(verification["tensors"]))]
        return h("div", h("h3", t("export.verification_passed")), _list(results))
    against = t(
        "export.check_against",
        backend=verification["backend"],
        precision=verification["precision"],
        span=f.span(verification["seconds"]),
    )
    receivers = verification.get("receivers") or [
        {**verification, "name": ""}
    ]  # exports written before these were distinguished
    results = [_receiver(t, f, verification, receiver) for receiver in receivers]
    return h("div", h("h3", t("export.verification_passed")), results, h("p", against, class_="soft"))


def _receiver(t: Strings, f: Formats, verification: Mapping[str, Any], receiver: Mapping[str, Any]) -> Html:
    """The result for one program that opened the export."""
    passed = receiver["passed"]
    word = "passed" if passed else "not_verified" if passed is None else "other"
    badge = parts.badge(t(f"export.receiver_{word}"), "good" if passed else "warn")
    name = f"{receiver['name']} {receiver.get('version') or ''}".strip()
    head = h("div", h("strong", t("export.receiver", name=name)), badge, class_="row") if name else None
    reason = receiver.get("reason")
    why = h("p", sentence(t, reason), class_="hint warn text") if reason else None
    if passed is None:
        return h("div", head, why, data_receiver=name)
    prompts, chats, costs = f.number(receiver.get("prompts") or verification["prompts"]), receiver.get("chats"), None
    results = [t("export.check_ids", n=prompts), t("export.check_stops")]
    if chats:
        results.insert(1, t("export.check_chats", n=f.number(chats)))
    ties = receiver.get("near_ties") or []
    if verification.get("tie_tolerance") is None:
        costs = h("li", t("export.check_wording"), class_="cost")
    else:
        results.append(t("export.check_text", equal=f.number(receiver["equal_texts"]), n=prompts))
        if ties:
            results.append(t("export.check_ties", n=f.number(len(ties))))
    results.append(t("export.check_kl", kl=f"{receiver['kl_mean']:.2g}", limit=f"{verification['kl_limit']:g}"))
    notes = [h("p", sentence(t, note), class_="hint text") for note in receiver.get("notes") or []]
    near = (
        h(
            "details",
            h("summary", t("export.near_ties")),
            h("ul", [h("li", sentence(t, tie), class_="text") for tie in ties]),
        )
        if ties
        else None
    )
    return h("div", head, why, _list(results, costs), near, notes, data_receiver=receiver["name"])


def _list(texts: Sequence[str], more: Html | None = None) -> Html:
    return h("ul", [h("li", text) for text in texts], more, class_="checks")


def _use(t: Strings, target: Target, out: Path, files: Sequence[Path]) -> Html:
    """The commands that use an export in other programs."""
    typed, steps = [], []
    for command in target.commands(out, files):
        title = command_title(t, command)
        if not command.text:
            steps.append(h("p", title, class_="soft"))
            continue
        typed.append(
            h(
                "div",
                h("span", title),
                h("code", command.text, tabindex="0", dir="ltr"),
                h("button", t("common.copy"), type="button", class_="button small", data_copy=command.text),
                class_="command",
            )
        )
    return h("div", h("h3", t("export.use")), typed, steps) if typed or steps else Html("")


def target_title(t: Strings, target: Target) -> str:
    """A target's title."""
    return t.get(f"targets.{target.key}.title") or target.title


def target_summary(t: Strings, target: Target) -> str:
    """A target's purpose, in a sentence."""
    return t.get(f"targets.{target.key}.summary") or target.summary


def quants_title(t: Strings, target: Target) -> str:
    """The title of a target's list of quantization types."""
    return t.get(f"targets.{target.key}.quants_title") or target.quants_title


def quant_title(t: Strings, quant: Quant) -> str:
    """A quantization type's title."""
    return t.get(f"quants.{quant.key}.title") or quant.title


def quant_summary(t: Strings, quant: Quant) -> str:
    """A quantization type's purpose, in a sentence."""
    return t.get(f"quants.{quant.key}.summary") or quant.summary


def command_title(t: Strings, command: Command) -> str:
    """A command's title."""
    return t.get(f"targets.commands.{command.key}") or command.title
