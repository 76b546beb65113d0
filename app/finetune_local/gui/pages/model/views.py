"""Views of installed models: the selected one, the list, and a model's details."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from finetune_local.gui.i18n.formats import Formats
from finetune_local.gui.i18n.strings import Strings, sentence
from finetune_local.gui.pages.model.basemodels import BaseModels
from finetune_local.gui.pages.model.offers import Offers, badges, use_button
from finetune_local.gui.widgets import parts
from finetune_local.gui.widgets.html import Child, Html, h, join
from finetune_local.models.catalog import entry
from finetune_local.models.local import LocalModel
from finetune_local.models.memory.estimate import ModelFacts


class HereViews:
    """Draws the views in one language."""

    def __init__(self, t: Strings, f: Formats, models: BaseModels, offers: Offers) -> None:
        self.t, self.f, self.models, self.offers = t, f, models, offers

    def head(self, chosen: str, busy: set[str], offline: bool) -> Html:
        """The page's header and the selected model."""
        t = self.t
        found, known = self.models.now.find(chosen), entry(chosen)
        get: Child = None
        description: Child
        if found is not None:
            state = parts.badge(t("model.damaged"), "bad") if found.problem else parts.badge(t("model.here"), "good")
            description, key = self._facts(found), str(found.path)
        elif known is not None:
            what = known.hub or known.name
            state, key = parts.badge(t("model.not_here"), "warn"), known.name
            description = " · ".join(
                [
                    self.f.parameters(known.parameters),
                    t("model.context", n=self.f.number(known.context_length)),
                    known.license,
                ]
            )
            get = self.offers.download(known.name, known.download_bytes, offline, what in busy)
        else:
            looking = not self.models.looked
            state = parts.badge(t("common.working")) if looking else parts.badge(t("model.missing"), "bad")
            description, key = t("model.looking" if looking else "model.gone"), ""
        box = h(
            "section",
            h("p", t("model.chosen"), class_="soft over"),
            h("div", h("h2", _name(found) if found else chosen), state, h("span", class_="grow"), get, class_="row"),
            h("p", description, class_="soft"),
            h("p", sentence(t, found.problem), class_="hint bad text") if found and found.problem else None,
            self._fits(key, "chosen"),
            class_="card chosen-model",
            aria_label=t("model.chosen"),
        )
        forward = parts.button(t("model.to_data"), "continue", kind="primary")
        return join([parts.header(t("model.title"), t("model.lead"), forward), box])

    def here(self, chosen: str, details: tuple[str, Html], removing: tuple[str, Html], folders: Sequence[Path]) -> Html:
        """The list of models. `details` and `removing`: a model and the HTML shown below it. `folders`: the user's model folders."""
        t, now = self.t, self.models.now
        in_use = now.find(chosen)
        rows = []
        for found in (*now.installed, *now.elsewhere):
            below = [part for name, part in (removing, details) if name == found.use]
            rows.append(self._row(found, found is in_use, details[0] == found.use, below))
        if rows:
            body: Child = h("ul", rows, class_="plain models")
        else:
            body = h("p", t("model.nothing_here" if self.models.looked else "model.looking"), class_="soft")
        return h(
            "section",
            h(
                "div",
                h("h2", t("model.on_this_machine")),
                parts.button(t("model.refresh"), "refresh", kind="quiet small", disabled=self.models.looking),
                class_="row between",
            ),
            body,
            [self._folder(place, place in now.missing) for place in folders],
            class_="card",
        )

    def _folder(self, place: Path, missing: bool) -> Html:
        """One of the user's model folders."""
        t = self.t
        text = t("model.folder_missing" if missing else "model.folder", folder=str(place))
        label, sure = t("model.forget"), t("model.forget_sure", folder=str(place))
        title = t("model.named", label=label, name=str(place))
        forget = parts.button(label, "forget", str(place), kind="small quiet", confirm=sure, title=title)
        return h("div", h("span", text), forget, class_=f"hint row between {'warn' if missing else ''}".strip())

    def details(self, facts: ModelFacts) -> Html:
        """Everything that `models info` prints."""
        t, f = self.t, self.f
        pairs = [
            (t("model.fact_name"), facts.name),
            (t("model.fact_family"), facts.family),
            (t("model.fact_parameters"), f"{f.number(facts.parameters)}"),
            (t("model.fact_size"), f.size(facts.bytes)),
            (t("model.fact_context"), t("model.tokens", n=f.number(facts.context_length))),
            (t("model.fact_template"), t("common.yes" if facts.chat_template else "model.no_template")),
            (t("model.fact_license"), facts.license),
            (t("model.fact_from"), facts.source),
            (t("model.fact_revision"), facts.revision),
            (t("model.fact_path"), h("span", h("code", facts.path, class_="path"), _copy(t, facts.path))),
        ]
        return h("div", parts.facts(pairs), class_="model-details")

    def removing(self, name: str, adapters: list[str], runs: list[str]) -> Html:
        """The confirmation before a model is removed."""
        t = self.t
        needed = [
            h("p", t("model.needed_by", n=len(adapters), names=t("model.comma").join(adapters))) if adapters else None,
            h("p", t("model.trained_on", names=t("model.comma").join(runs))) if runs else None,
            h("p", t("model.not_needed")) if not adapters and not runs else None,
        ]
        yes = parts.button(t("model.remove_yes"), "remove_yes", name, kind="small danger")
        no = parts.button(t("common.cancel"), "remove_no", name, kind="small")
        question = h("p", h("strong", t("model.remove_sure", name=name)))
        return h("div", question, needed, h("div", yes, no, class_="row"), class_="hint warn sure", role="alert")

    def _row(self, found: LocalModel, in_use: bool, open_: bool, below: list[Html]) -> Html:
        t, name = self.t, _name(found)
        buttons: list[Child] = []
        if in_use:
            buttons.append(parts.badge(t("model.in_use"), "live"))
        elif found.kind == "GGUF":
            buttons.append(self._button("model.convert", "download", found.use, name, "small"))
        elif not found.problem:
            buttons.append(use_button(t, found.use))
        if found.kind == "folder" and not found.problem:
            label = "model.less" if open_ else "common.details"
            buttons.append(self._button(label, "details", found.use, name, "small quiet"))
        if found.place == "home":
            buttons.append(self._button("model.remove", "remove", found.use, name, "small quiet danger"))
        return h(
            "li",
            h(
                "div",
                h("div", h("h3", name), h("p", self._facts(found), class_="soft"), class_="grow"),
                h("div", buttons, class_="row"),
                class_="row top",
            ),
            h("p", sentence(t, found.problem), class_="hint bad text") if found.problem else None,
            h("p", t("model.gguf"), class_="soft") if found.kind == "GGUF" else None,
            self._fits(str(found.path), found.use),
            below,
            class_="chosen" if in_use else None,
            data_model=found.use,
        )

    def _button(self, key: str, do: str, use: str, name: str, kind: str) -> Html:
        label = self.t(key)
        return parts.button(label, do, use, kind=kind, title=self.t("model.named", label=label, name=name))

    def _facts(self, found: LocalModel) -> str:
        """Size, architecture, licence and location, in one line."""
        t, f = self.t, self.f
        place = t.get(f"model.place_{found.place.replace(' ', '_').lower()}") or found.place
        facts = [
            f.parameters(found.parameters) if found.parameters else "",
            found.family,
            f.size(found.bytes),
            found.license,
            found.source if found.source != found.use else "",
            place,
        ]
        return " · ".join(part for part in facts if part)

    def _fits(self, key: str, keep: str) -> Html | None:
        fits = self.models.now.fits.get(key)
        return badges(self.t, self.f, fits, self.models.device(), keep) if fits else None


def _name(found: LocalModel) -> str:
    """A model's name in lists: its short name, ORG/NAME, or the last part of its path."""
    return found.use if found.use != str(found.path) else found.path.name


def _copy(t: Strings, text: str) -> Html:
    return h("button", t("common.copy"), type="button", class_="button small quiet", data_copy=text)
