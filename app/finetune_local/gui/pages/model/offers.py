"""Models to download, from the catalogue or a search, and badges that say whether a model fits in memory."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_local.backend import Device
from finetune_local.gui.i18n.formats import Formats
from finetune_local.gui.i18n.strings import Strings
from finetune_local.gui.pages.model.basemodels import BaseModels
from finetune_local.gui.widgets import parts
from finetune_local.gui.widgets.controls import method_title
from finetune_local.gui.widgets.html import Child, Html, h
from finetune_local.models.catalog import Entry, catalog
from finetune_local.models.hub.repository import endpoint
from finetune_local.models.hub.search import Hit
from finetune_local.models.memory.estimate import Fit, fits_shape, shape_like

KINDS = {"fits": "good", "tight": "warn", "too big": "bad"}


class Offers:
    """Cards of models to download. `busy`: those being downloaded, as ORG/NAME or the default model's short name."""

    def __init__(self, t: Strings, f: Formats, models: BaseModels) -> None:
        self.t, self.f, self.models = t, f, models

    def catalogue(self, busy: set[str], chosen: str, offline: bool) -> Html:
        """A card for each recommended model."""
        t, f, device = self.t, self.f, self.models.device()
        cards = [self._entry(entry, busy, chosen, offline) for entry in catalog()]
        return h(
            "section",
            h("h2", t("model.recommended")),
            h("p", t("model.recommended_text"), " ", on_what(t, f, device), class_="soft"),
            h("p", t("model.offline"), class_="hint") if offline else None,
            h("div", cards, class_="grid"),
            class_="offers",
        )

    def hits(self, words: str, found: Sequence[Hit], busy: set[str], offline: bool) -> Html:
        """A card for each search result."""
        t = self.t
        if not found:
            return h("p", t("model.nothing_found", words=words), class_="hint", role="status")
        cards = [self._hit(hit, busy, offline) for hit in found]
        return h(
            "div",
            h("p", t("model.found", n=len(found), words=words), class_="soft", role="status"),
            h("div", cards, class_="grid"),
        )

    def download(self, name: str, size: int | None, offline: bool, busy: bool = False) -> Html:
        """The button that starts a download."""
        t = self.t
        if busy:
            return parts.badge(t("model.downloading"), "live")
        label = t("model.download_size", size=self.f.size(size)) if size else t("model.download")
        return parts.button(
            label, "download", name, kind="small", disabled=offline, title=t("model.named", label=label, name=name)
        )

    def _entry(self, entry: Entry, busy: set[str], chosen: str, offline: bool) -> Html:
        t, f = self.t, self.f
        what, here = entry.hub or entry.name, self.models.now.copy_of(entry)
        action: Child
        if here is not None and here.use == chosen:
            action = parts.badge(t("model.in_use"), "live")
        elif here is not None and not here.problem:
            action = use_button(t, here.use)
        else:
            action = self.download(entry.name, entry.download_bytes, offline, what in busy)
        good_for = t.get(f"catalog.{entry.name}") or entry.good_for
        facts = [
            t("model.context", n=f.number(entry.context_length)),
            entry.license,
        ]
        return self._card(
            entry.name,
            f.parameters(entry.parameters),
            good_for,
            facts,
            self.models.now.fits.get(entry.name),
            action,
            gated=entry.hub if entry.gated and here is None else "",
            here=here is not None,
        )

    def _hit(self, hit: Hit, busy: set[str], offline: bool) -> Html:
        t, f, device = self.t, self.f, self.models.device()
        here = self.models.now.find(hit.name)
        fits = None
        if hit.parameters:
            fits = fits_shape(shape_like(hit.parameters, hit.family), device.kind, device.memory_bytes)
        size = 2 * hit.parameters if hit.parameters else None
        facts = [hit.family, hit.license, t("model.downloads_count", n=f.number(hit.downloads))]
        if hit.updated:
            facts.append(t("model.updated", day=hit.updated))
        action = (
            use_button(t, here.use) if here is not None else self.download(hit.name, size, offline, hit.name in busy)
        )
        return self._card(
            hit.name,
            f.parameters(hit.parameters),
            "",
            facts,
            fits,
            action,
            gated=hit.name if hit.gated and here is None else "",
            here=here is not None,
            guessed=True,
        )

    def _card(
        self,
        name: str,
        parameters: str,
        good_for: str,
        facts: Sequence[str],
        fits: Sequence[Fit] | None,
        action: Child,
        *,
        gated: str,
        here: bool,
        guessed: bool = False,
    ) -> Html:
        t = self.t
        marks = [
            parts.badge(t("model.here"), "good") if here else None,
            parts.badge(t("model.gated"), "warn") if gated else None,
        ]
        return h(
            "article",
            h("div", h("h3", name), h("span", parameters, class_="parameters"), class_="row between nowrap"),
            h("p", good_for) if good_for else None,
            h("p", " · ".join(fact for fact in facts if fact), class_="soft"),
            badges(t, self.f, fits, self.models.device(), name, guessed=guessed) if fits else None,
            self._gated(gated) if gated else None,
            h("div", action, marks, class_="row foot"),
            class_="card offer",
            data_model=name,
        )

    def _gated(self, repository: str) -> Html:
        """What to do before a gated model can be downloaded."""
        t, place = self.t, endpoint()
        return h(
            "details",
            h("summary", t("model.gated_how")),
            h(
                "ol",
                h("li", t("model.gated_accept"), address(t, f"{place}/{repository}")),
                h("li", t("model.gated_token"), address(t, f"{place}/settings/tokens")),
                h("li", t("model.gated_save"), " ", parts.button(t("model.to_settings"), "settings", kind="small")),
            ),
            class_="gated",
            data_keep=f"gated {repository}",
        )


def use_button(t: Strings, name: str) -> Html:
    """The button that selects a model for training."""
    label = t("model.use")
    return parts.button(label, "use", name, kind="small primary", title=t("model.named", label=label, name=name))


def address(t: Strings, text: str) -> Html:
    """A web address to copy; the app does not open it."""
    copy = h("button", t("common.copy"), type="button", class_="button small quiet", data_copy=text)
    return h("span", h("code", text), copy, class_="address")


def verdict(t: Strings, fit: Fit) -> str:
    """A verdict as a word."""
    return t(f"model.verdict_{fit.verdict.replace(' ', '_')}")


def best(found: Sequence[Fit]) -> dict[str, Fit]:
    """For each precision, the verdict of the method that needs the least memory, which the badge shows."""
    least: dict[str, Fit] = {}
    for fit in found:
        if fit.precision not in least or fit.needs.total < least[fit.precision].needs.total:
            least[fit.precision] = fit
    return least


def badges(t: Strings, f: Formats, found: Sequence[Fit], device: Device, key: str, *, guessed: bool = False) -> Html:
    """A row of badges that expands to the reasons.

    `key` keeps it expanded when the view is redrawn; `guessed`: only the number of parameters is known.
    """
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
    """The memory that a method needs, by part, and the memory available."""
    needs = fit.needs
    text = t(
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
    return h("div", h("strong", name), " ", parts.badge(verdict(t, fit), KINDS[fit.verdict]), h("div", text))


def on_what(t: Strings, f: Formats, device: Device) -> str:
    """A line that names the device of the verdicts."""
    if not device.name:
        return t("model.device_unknown", memory=f.size(device.memory_bytes))
    return t("model.device", name=device.name, memory=f.size(device.memory_bytes))
