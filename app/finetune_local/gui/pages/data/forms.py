"""The forms of the Data page: roles of columns, the speaker to learn, how rows are read, which personal data is replaced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from finetune_local.data.formats import formats
from finetune_local.data.readers.columns import roles
from finetune_local.data.readers.scrub import KINDS, kinds_of
from finetune_local.gui.i18n.formats import Formats
from finetune_local.gui.i18n.strings import Strings
from finetune_local.gui.i18n.translate import sentence
from finetune_local.gui.pages.data.rows import data_text
from finetune_local.gui.widgets import parts
from finetune_local.gui.widgets.html import Html, h
from finetune_local.spec.run import COLUMN_ROLES, DataSettings

COLUMNS_SHOWN = 40
_SPEAKERS_SHOWN = 50

Values = Mapping[str, Any]


def columns_card(t: Strings, f: Formats, settings: DataSettings, found: Values) -> Html | None:
    """A role for each column; only where no format recognises them, or roles were assigned."""
    chosen = roles(settings.columns)
    if not chosen and not found["unknown"]:
        return None
    guessed = {name: role for role, name in found["guess"].items()} if not chosen else {}
    known = chosen or guessed
    rows = []
    for index, column in enumerate(found["columns"][:COLUMNS_SHOWN]):
        name = column["name"]
        role = known.get(name.strip().lower(), "")
        options = [
            h("option", t(f"data.role_{one or 'none'}"), value=one, selected=one == role) for one in ("", *COLUMN_ROLES)
        ]
        select = h(
            "select",
            options,
            name_=f"column{index}",
            data_fresh=f"{name} {role}",
            aria_label=t("data.column_role_of", name=name),
        )
        rows.append((h("strong", data_text(name)), (data_text(column["sample"]), "wide soft"), select))
    left = len(found["columns"]) - COLUMNS_SHOWN
    headings = (t("data.column"), t("data.column_sample"), t("data.column_role"))
    forget = parts.button(t("data.columns_reset"), "data.no_columns", kind="quiet") if chosen else None
    form = h(
        "form",
        parts.table(headings, rows, caption=t("data.columns")),
        h("p", t("data.columns_more", n=f.number(left)), class_="soft") if left > 0 else None,
        h(
            "div",
            h("button", t("data.columns_apply"), type="submit", class_="button primary"),
            forget,
            class_="row form-end",
        ),
        data_do="data.columns",
    )
    if chosen:
        named = ", ".join(f"{name} = {t(f'data.role_{role}')}" for role, name in _pairs(settings))
        summary = h("summary", h("strong", t("data.columns_known")), " ", h("span", data_text(named), class_="soft"))
        return parts.card(h("details", summary, form, data_keep="data-columns"))
    return parts.card(h("p", t("data.columns_text"), class_="soft"), form, title=t("data.columns"), class_="attention")


def _pairs(settings: DataSettings) -> list[tuple[str, str]]:
    """Pairs of role and column in the settings."""
    return [(role, name) for role, _, name in (column.partition("=") for column in settings.columns)]


def columns_of(data: Mapping[str, str], found: Values) -> list[str]:
    """The setting `columns` of a submitted form."""
    names = [column["name"] for column in found["columns"][:COLUMNS_SHOWN]]
    return [f"{role}={name}" for index, name in enumerate(names) if (role := data.get(f"column{index}", ""))]


def speakers_card(t: Strings, f: Formats, settings: DataSettings, found: Values) -> Html | None:
    """Whose messages are learned; only where speakers have names."""
    assistant = settings.assistant or ""
    names = found["named"][:_SPEAKERS_SHOWN]
    if not names and not assistant:
        return None
    counts = found["speakers"]
    if assistant and assistant not in names:
        names = [assistant, *names]
    options = [h("option", t("data.speaker_none"), value="", selected=not assistant)]
    options += [
        h(
            "option",
            t("data.speaker", name=name, n=f.number(counts.get(name, 0))),
            value=name,
            selected=name == assistant,
        )
        for name in names
    ]
    return parts.card(
        h("label", t("data.speakers_text"), for_="data-speaker", class_="soft"),
        h("select", options, id="data-speaker", data_do="data.assistant", data_fresh=assistant),
        title=t("data.speakers"),
        class_="attention" if not assistant else "",
    )


def how_card(t: Strings, f: Formats, settings: DataSettings, found: Values | None) -> Html:
    """Template, format, lengths, split."""
    format_ = settings.format
    choices = [("auto", t("data.format_auto"))]
    choices += [(one.key, sentence(t, one.title)) for one in formats().values() if one.example]
    templates = get_args(DataSettings.model_fields["template"].annotation)
    template = settings.template
    longest = found["report"]["max_length"] if found and found["report"]["tokens"] else None
    own = bool(settings.validation_files)
    share = settings.validation
    fields = h(
        "div",
        _field(
            t("data.template"),
            "data-template",
            _select("data-template", "template", [(one, t(f"data.template_{one}")) for one in templates], template),
        ),
        _field(t("data.format"), "data-format", _select("data-format", "format", choices, format_)),
        _field(
            t("data.max_length"),
            "data-max-length",
            _number(
                "data-max-length",
                "max_length",
                settings.max_length,
                least=8,
                placeholder=t("data.max_length_auto", n=f.number(longest)) if longest else t("common.automatic"),
            ),
        ),
        _field(
            t("data.limit"),
            "data-limit",
            _number("data-limit", "limit", settings.limit, least=1, placeholder=t("data.limit_all")),
        ),
        h("p", t("data.validation_own"), class_="soft")
        if own
        else _field(
            t("data.validation"),
            "data-validation",
            _number("data-validation", "validation", f"{100 * share:g}", least=0, most=90),
        ),
        class_="fields",
    )
    return parts.card(fields, title=t("data.how"))


def personal_card(t: Strings, f: Formats, settings: DataSettings, found: Values) -> Html:
    """What personal data there is, and whether it is replaced."""
    counts = found["report"]["personal"]
    wanted = kinds_of(settings.scrub)
    shown = [kind for kind in KINDS if counts.get(kind) or kind in wanted]
    if not shown:
        body: list[Html] = [h("p", t("data.personal_none"), class_="soft")]
    else:
        body = [
            h("p", t("data.personal_text"), class_="soft"),
            *(
                h(
                    "label",
                    h(
                        "input",
                        type="checkbox",
                        checked=kind in wanted,
                        data_do="data.scrub",
                        data_value=kind,
                        data_fresh=f"{kind} {kind in wanted}",
                        id=f"data-scrub-{kind}",
                    ),
                    h("span", t(f"data.kind_{kind}"), class_="grow"),
                    h("span", t("data.personal_found", n=f.number(counts.get(kind, 0))), class_="soft"),
                    class_="check",
                )
                for kind in shown
            ),
        ]
    return parts.card(*body, h("p", t("data.personal_limits"), class_="soft"), title=t("data.personal"))


def _field(label: str, id: str, control: Html) -> Html:  # noqa: A002 - HTML's word
    return h("div", h("label", label, for_=id), control, class_="field")


def _select(id: str, key: str, choices: list[tuple[str, str]], chosen: str) -> Html:  # noqa: A002 - HTML's word
    options = [h("option", text, value=value, selected=value == chosen) for value, text in choices]
    return h("select", options, id=id, data_do="data.set", data_value=key, data_fresh=chosen)


def _number(id: str, key: str, value: object, *, least: int, most: int | None = None, placeholder: str = "") -> Html:  # noqa: A002
    return h(
        "input",
        type="number",
        min=least,
        max=most,
        step="any" if key == "validation" else 1,
        value="" if value is None else value,
        placeholder=placeholder,
        id=id,
        data_do="data.set",
        data_value=key,
        data_fresh="" if value is None else value,
    )
