"""What surrounds a conversation: the saved conversations, the base, the answering models, suggested questions, settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_local.chat import conversations
from finetune_local.chat.choices import MOST_ANSWERERS
from finetune_local.chat.client import ChatCall
from finetune_local.evaluation.rows import Example, examples
from finetune_local.gui.i18n.strings import sentence
from finetune_local.gui.pages.chat.room import BASE
from finetune_local.gui.pages.chat.state import ChatState
from finetune_local.gui.widgets import leftovers, parts
from finetune_local.gui.widgets.html import Html, h, join
from finetune_local.models.install import installed
from finetune_local.training.run_folder import runs

if TYPE_CHECKING:
    from finetune_local.gui.pages.chat.room import Room
    from finetune_local.gui.shell.context import Context
    from finetune_local.gui.shell.windows import Window


from typing import TYPE_CHECKING

from finetune_local.gui.pages.chat import room
from finetune_local.gui.widgets import controls
from finetune_local.inference.sampling import Sampling
from finetune_local.spec.run import ModelSettings, RunSpec
from finetune_local.system.errors import SpecError

if TYPE_CHECKING:
    from finetune_local.gui.shell.context import Context
    from finetune_local.gui.shell.windows import Window


LISTED = 200
"""How many conversations are listed; the search finds older ones."""

OFFERED = 3
"""How many held-out questions are suggested at once."""


def saved(context: Context, window: Window, current: str) -> Html:
    """The saved conversations that match the search."""
    t, f = context.t, context.f
    state = window.state(ChatState)
    found = conversations.listed(context.home, state.search)
    older, found = len(found) - LISTED, found[:LISTED]
    undo = None
    if state.removed is not None:
        label = h("span", t("chat.removed", name=state.removed.name), class_="grow")
        undo = h("div", label, parts.button(t("common.undo"), "undo", kind="small"), class_="hint row", role="status")
    items = []
    for one in found:
        if state.renaming == one.id:
            items.append(h("li", _renaming(context, one.id, one.name)))
            continue
        name = h("span", one.name, class_="name")
        when = h("small", f.moment(one.changed))
        chosen = one.id == current
        entry = h(
            "button",
            name,
            when,
            type="button",
            class_="entry",
            data_do="open",
            data_value=one.id,
            aria_current="true" if chosen else None,
        )
        tools = h(
            "div",
            parts.button(t("common.rename"), "rename", one.id, kind="quiet small"),
            parts.button(t("common.delete"), "remove", one.id, kind="quiet small danger"),
            class_="tools",
        )
        items.append(h("li", entry, tools if chosen else None, class_="chosen" if chosen else None))
    none = h("p", t("chat.none_found") if state.search else t("chat.none_yet"), class_="soft")
    entries = h("ul", items, class_="saved", aria_label=t("chat.saved")) if items else none
    more = h("p", t("chat.older", n=f.number(older)), class_="soft") if older > 0 else None
    bad = leftovers.damaged_box(t, conversations.damaged(context.home), "remove")
    return join([undo, entries, more, bad, leftovers.trash_box(context, conversations.KIND)])


def _renaming(context: Context, id: str, name: str) -> Html:  # noqa: A002 - the conversation's
    t = context.t
    return h(
        "form",
        h("input", name_="title", value=name, aria_label=t("chat.new_name"), autofocus=True, maxlength="120"),
        h(
            "div",
            h("button", t("common.rename"), type="submit", class_="button small primary"),
            parts.button(t("common.cancel"), "rename", "", kind="quiet small"),
            class_="row",
        ),
        data_do="renamed",
        data_value=id,
    )


def top(context: Context, window: Window, room: Room) -> Html:
    """The conversation's name, the base, and which model is in memory."""
    t = context.t
    known = installed(context.home.models)
    if room.model and room.model not in known:
        known = [room.model, *known]
    chooser = h(
        "label",
        h("span", t("chat.model"), class_="unseen"),
        h(
            "select",
            [h("option", _short(name), value=name, selected=name == room.model) for name in known],
            data_do="model",
            title=t("chat.model"),
        ),
    )
    settings = parts.button(
        t("chat.settings"),
        "settings",
        kind="chosen" if window.state(ChatState).settings else "",
        disabled=room.model is None,
    )
    title = room.conversation.name or t("chat.new")
    head = parts.header(title, "", chooser if room.model else None, settings)
    return join([head, memory(context, room), _training(context)])


def _short(name: str) -> str:
    return Path(name).name if Path(name).is_absolute() else name


def memory(context: Context, room: Room) -> Html | None:
    """A line on the loaded model, with a button to load or unload it."""
    t, f, opened = context.t, context.f, context.chat.opened
    if room.model is None:
        return None
    if room.missing:
        go = parts.button(t("chat.to_models"), "go", "model", kind="small")
        return h("div", h("p", sentence(t, room.missing), class_="grow"), go, class_="hint warn row")
    loading = next((call for call in context.chat.active() if call.phase == "loading"), None)
    if loading is not None:
        return parts.progress(t, f, sentence(t, loading.doing), loading.done)
    if opened is None:
        load = parts.button(t("chat.load"), "load", kind="quiet small")
        return h("div", h("span", t("chat.not_loaded"), class_="soft"), load, class_="memory row")
    facts = " · ".join([str(opened["precision"]), str(opened["backend"]), str(opened["device"])])
    size = f.size(opened["memory_bytes"])
    unload = parts.button(t("chat.unload"), "unload", kind="quiet small", title=t("chat.unload_title"))
    if room.folder is not None and Path(opened["path"]) != room.folder.path:
        other = t("chat.other_loaded", model=opened["model"], size=size)
        return h("div", h("span", other, class_="soft"), unload, class_="memory row")
    took = t("chat.loaded_in", span=f.span(opened["load_seconds"]))
    return h(
        "div",
        parts.badge(t("chat.loaded"), "good"),
        h("span", f"{size} · {facts} · {took}", class_="soft"),
        unload,
        class_="memory row",
    )


def _training(context: Context) -> Html | None:
    """Whether a run is training, so that memory may be short."""
    opened = context.chat.opened
    if opened is None or not runs.running(context.home):
        return None
    t = context.t
    text = t("chat.training", size=context.f.size(opened["memory_bytes"]))
    return h(
        "div",
        h("p", text, class_="grow"),
        parts.button(t("chat.unload"), "unload", kind="small"),
        class_="hint warn row",
    )


def who(context: Context, room: Room, note: str) -> Html:
    """The answering models, and a list to choose from. Adapters that do not fit the base are listed with the reason."""
    t = context.t
    if room.folder is None:
        return Html("")
    names = [name or t("common.base") for name in room.answerers]
    rows = [_choice(context, BASE, t("common.base"), "", room)]
    rows += [_choice(context, offer.name, _short(offer.name), offer.problem, room) for offer in room.offers]
    hint = t("chat.who_hint", most=MOST_ANSWERERS) if room.offers else t("chat.who_none")
    status = h("span", note, class_="soft", role="status") if note else None
    return h(
        "div",
        h(
            "details",
            h("summary", t("chat.answered_by"), " ", h("b", ", ".join(map(_short, names)))),
            h("div", h("p", hint, class_="soft"), h("ul", rows, class_="who-list"), class_="panel"),
            class_="popup",
            data_keep="chat-who",
        ),
        status,
        class_="row who",
    )


def _choice(context: Context, name: str, label: str, problem: str, room: Room) -> Html:
    t = context.t
    answers = (name or None) in room.answerers
    full = len(room.answerers) >= MOST_ANSWERERS
    alone = answers and len(room.answerers) == 1
    box = h(
        "input",
        type="checkbox",
        checked=answers,
        disabled=bool(problem) or alone or (full and not answers),
        data_do="toggle",
        data_value=name,
    )
    only = None if problem or alone else parts.button(t("chat.only"), "only", name, kind="quiet small")
    reason = h("small", sentence(t, problem), class_="clip", title=sentence(t, problem)) if problem else None
    return h("li", h("label", box, h("span", label, reason)), only, class_="misfit" if problem else None)


def held_out(room: Room) -> Sequence[Example]:
    """Held-out questions from the run of the first answering adapter that has some."""
    folders = {offer.name: offer.folder for offer in room.offers}
    return next((found for name in room.adapters if (found := examples(folders[name].resolve()))), ())


def trying(context: Context, window: Window, room: Room) -> Html | None:
    """Buttons with suggested questions."""
    t, found = context.t, held_out(room)
    if not found:
        return None
    first = window.state(ChatState).examples % len(found)
    shown = [(first + n) % len(found) for n in range(min(OFFERED, len(found)))]
    items = [
        h(
            "li",
            h(
                "button",
                h("span", found[n].question, class_="clip"),
                h("small", t("chat.expected_is", text=found[n].reference), class_="clip"),
                type="button",
                data_do="try",
                data_value=n,
            ),
        )
        for n in shown
    ]
    more = parts.button(t("chat.others"), "others", kind="quiet small") if len(found) > OFFERED else None
    return h("div", h("div", h("h2", t("chat.try")), more, class_="row between"), h("ul", items, class_="try"))


def welcome(context: Context, window: Window, room: Room) -> Html:
    """What an empty conversation shows."""
    t = context.t
    if room.model is None or room.folder is None:
        go = parts.button(t("chat.to_models"), "go", "model", kind="primary")
        return parts.empty(t("chat.no_model"), t("chat.no_model_text"), go)
    text = t("chat.welcome_several") if len(room.answerers) > 1 else t("chat.welcome_one")
    return h("div", h("h2", t("chat.welcome")), h("p", text), trying(context, window, room), class_="welcome")


def sending(context: Context, room: Room, call: ChatCall | None, editing: int | None) -> Html:
    """The buttons beside the message box."""
    t = context.t
    if call is not None and not call.ended:
        return parts.button(t("common.stop"), "stop", kind="danger", disabled=call.stopped)
    label = t("chat.send_edited") if editing is not None else t("chat.send")
    return parts.button(label, "send", kind="primary", disabled=room.folder is None, title=t("chat.send_title"))


def editing_note(context: Context, editing: int | None) -> Html:
    """A note on what editing a question does, with a button to cancel."""
    t: Any = context.t
    if editing is None:
        return Html("")
    cancel = parts.button(t("common.cancel"), "edit", "", kind="quiet small")
    return h("div", h("p", t("chat.editing"), class_="grow"), cancel, class_="hint row", role="status")


class ChatPanel:
    """The settings panel: system prompt, sampling, backend. Create it inside the page; it overlays the right side."""

    def __init__(self, context: Context) -> None:
        import gradio as gr

        self._context, t = context, context.t
        with gr.Column(elem_id="chat-settings", visible=False) as self.column:
            close = parts.button("×", "settings", kind="quiet small", title=t("common.close"))
            self.close = parts.view(h("div", h("h2", t("chat.settings")), close, class_="row between"), id="chat-close")
            self.system = gr.Textbox(
                label=t("chat.system"), info=t("chat.system_info"), lines=3, max_lines=8, elem_id="chat-system"
            )
            self.problem = parts.view(id="chat-problem")
            fields = Sampling.model_fields
            self._sampling = {name: controls.control(t, f"sampling.{name}", fields[name]) for name in fields}
            self._backend = controls.control(t, "backend", RunSpec.model_fields["backend"], id="chat-backend")
            precision = ModelSettings.model_fields["precision"]
            self._precision = controls.control(t, "model.precision", precision, id="chat-precision")

    @property
    def components(self) -> list[Any]:
        """All components that shown() updates."""
        return [self.column, self.system, self.problem, *self._settings()]

    def wire(self) -> None:
        """Connect the fields: values are stored as they are typed, and errors are shown."""
        import gradio as gr

        self._context.on(self.system.input, self._set_system, self.system, None, latest=True)
        self._context.on(
            lambda *given, **more: gr.on([one.input for one in self._settings()], *given, **more),
            self._set,
            self._settings(),
            self.problem,
            latest=True,
        )

    def shown(self, window: Window) -> dict[Any, Any]:
        """The panel's values for this window."""
        import gradio as gr

        state = window.state(ChatState)
        return {
            self.column: gr.Column(visible=state.settings),
            self.system: state.system,
            self._backend: state.backend,
            self._precision: state.precision,
            self.problem: self._problem(window),
            **{control: str(state.sampling.get(name, "")) for name, control in self._sampling.items()},
        }

    def _settings(self) -> list[Any]:
        return [*self._sampling.values(), self._backend, self._precision]

    def _set_system(self, window: Window, text: str) -> None:
        window.state(ChatState).system = text

    def _set(self, window: Window, *values: Any) -> Html:
        *sampling, backend, precision = values
        typed = {
            name: given
            for (name, field), value in zip(Sampling.model_fields.items(), sampling, strict=True)
            if (given := controls.setting_value(field, value)) is not None
        }
        state = window.state(ChatState)
        state.sampling, state.backend, state.precision = typed, backend or "auto", precision or ""
        return self._problem(window)

    def _problem(self, window: Window) -> Html:
        try:
            room.sampling(window)
        except SpecError as error:
            lines = sentence(self._context.t, error).splitlines()
            return join([h("p", line, class_="hint bad", role="status") for line in lines])
        return Html("")
