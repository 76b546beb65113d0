"""Whether a model fits in memory: a badge for each precision, and the numbers behind it on demand."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_local.backend import Device
from finetune_local.gui.i18n.formats import Formats
from finetune_local.gui.i18n.strings import Strings
from finetune_local.gui.widgets import parts
from finetune_local.gui.widgets.controls import method_title
from finetune_local.gui.widgets.html import Html, h
from finetune_local.models.memory.estimate import Fit

KINDS = {"fits": "good", "tight": "warn", "too big": "bad"}


def verdict(t: Strings, fit: Fit) -> str:
    """A verdict as a word."""
    return t(f"model.verdict_{fit.verdict.replace(' ', '_')}")


def best(found: Sequence[Fit]) -> dict[str, Fit]:
    """By precision, the verdict of the method that needs least memory: the one the badge shows."""
    least: dict[str, Fit] = {}
    for fit in found:
        if fit.precision not in least or fit.needs.total < least[fit.precision].needs.total:
            least[fit.precision] = fit
    return least


def badges(t: Strings, f: Formats, found: Sequence[Fit], device: Device, key: str, *, guessed: bool = False) -> Html:
    """A row of badges that opens to the reasons. `key` keeps it open when the view is drawn again; `guessed`: only the number of
    parameters is known."""
    row = [
        h("span", h("span", precision), " ", verdict(t, fit), class_=f"badge {KINDS[fit.verdict]}")
        for precision, fit in best(found).items()
    ]
    return h(
        "details",
        h("summary", row, h("span", t("model.why"), class_="why"), title=t("model.why_title")),
        h("p", on_what(t, f, device), class_="soft"),
        h("p", t("model.fit_guessed"), class_="soft") if guessed else None,
        h("ul", [h("li", reason(t, f, fit)) for fit in found], class_="reasons"),
        class_="fit",
        data_keep=f"fit {key}",
    )


def reason(t: Strings, f: Formats, fit: Fit) -> Html:
    """A method with what it needs, part by part, and what is available."""
    needs = fit.needs
    told = t(
        "model.reason_checkpointing" if fit.checkpointing else "model.reason",
        total=f.size(needs.total),
        weights=f.size(needs.weights),
        adapter=f.size(needs.trainable),
        optimizer=f.size(needs.optimizer),
        activations=f.size(needs.activations),
        runtime=f.size(needs.runtime),
        there=f.size(fit.memory_bytes),
    )
    name = t("model.way", method=method_title(t, fit.method), precision=fit.precision)
    return h("div", h("strong", name), " ", parts.badge(verdict(t, fit), KINDS[fit.verdict]), h("div", told))


def on_what(t: Strings, f: Formats, device: Device) -> str:
    """The device that the verdicts are for."""
    if not device.name:
        return t("model.device_unknown", memory=f.size(device.memory_bytes))
    return t("model.device", name=device.name, memory=f.size(device.memory_bytes))
