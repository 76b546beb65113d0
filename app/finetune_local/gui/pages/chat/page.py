"""Chat with the base and with adapters, alone or side by side; they can be swapped during a conversation."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from finetune_local.chat import choices, conversations
from finetune_local.chat.client import ChatCall
from finetune_local.chat.record import Record
from finetune_local.gui.pages.chat import bar
from finetune_local.gui.pages.chat import room as chatroom
from finetune_local.gui.pages.chat.bar import ChatPanel
from finetune_local.gui.pages.chat.room import Room
from finetune_local.gui.pages.chat.state import ChatState, Removed
from finetune_local.gui.pages.chat.view import ChatView
from finetune_local.gui.widgets import leftovers, parts
from finetune_local.gui.widgets.html import Html
from finetune_local.spec.run import DEFAULT_MODEL
from finetune_local.system.errors import SpecError

if TYPE_CHECKING:
    from finetune_local.gui.shell.context import Context
    from finetune_local.gui.shell.windows import Window

TITLE, ORDER = "nav.chat", 40
SHOWN = "chat shown"
EVERY = 0.1
"""Seconds between two updates of a streamed answer."""
SETTLED = 4.0
"""Seconds after which a browser has received everything sent to it."""


def completed(context: Context, _window: Window) -> bool:
    """Whether there is a conversation."""
    return any(context.home.chats.glob("*.jsonl"))


def build(context: Context) -> None:
    """Build the page (see gui/shell/main.py)."""
    ChatPage(context).build()


class ChatPage:
    """The page's components and their handlers."""

    def __init__(self, context: Context) -> None:
        self.context, self.t = context, context.t
        self.view = ChatView(context.t, context.f)
        self._notes: dict[str, str] = {}
        """The note last shown beside the list of answering models, by window."""
        self._moving: dict[str, float] = {}
        """When something was last pressed or followed in a window."""

    def build(self) -> None:
        """Create the components and connect their events."""
        import gradio as gr

        t = self.t
        self.pulse = gr.Textbox(visible="hidden", elem_id="chat-pulse")
        with gr.Row(elem_id="chat"):
            with gr.Column(elem_id="chat-side"):
                self.new = parts.view(parts.button(t("chat.new"), "new", kind="small"), id="chat-new")
                self.search = gr.Textbox(
                    show_label=False, container=False, placeholder=t("chat.search_short"), elem_id="chat-search", max_lines=1,
                    html_attributes=gr.InputHTMLAttributes(autocomplete="off"), label=t("chat.search"),
                )  # fmt: skip
                self.saved = parts.view(id="chat-saved")
            with gr.Column(elem_id="chat-main"):
                self.top = parts.view(id="chat-top")
                with gr.Row(elem_id="chat-middle"):
                    with gr.Column(elem_id="chat-scroll", elem_classes=["follow-end"]):
                        self.transcript = parts.view(id="chat-said")
                        self.live = parts.view(id="chat-live")
                    self.panel = ChatPanel(self.context)
                with gr.Column(elem_id="chat-foot"):
                    self.who = parts.view(id="chat-who")
                    self.editing = parts.view(id="chat-editing")
                    with gr.Row(elem_id="chat-box"):
                        self.message = gr.Textbox(
                            label=t("chat.message"), show_label=False, container=False, lines=1, max_lines=9,
                            placeholder=t("chat.placeholder"), elem_id="chat-message", elem_classes=["enter-sends"],
                        )  # fmt: skip
                        self.send = parts.view(id="chat-send")
        self._wire()

    def _wire(self) -> None:
        context = self.context
        self.views = [self.saved, self.top, self.transcript, self.live, self.who, self.editing, self.send]
        everything = [*self.views, self.message, self.search, self.pulse, *self.panel.components]
        drawn = [*self.views, self.pulse]
        context.on_show("chat", self._show, everything)
        context.on_tick("chat", self._tick, everything)
        context.on(self.pulse.change, self._follow, None, [*drawn, self.message])
        pressed = [*everything, context.nav]
        for view in (
            self.new,
            self.saved,
            self.top,
            self.transcript,
            self.live,
            self.who,
            self.editing,
            self.panel.close,
        ):
            context.on(view.click, self._press, None, pressed)
        context.on(self.send.click, self._send, self.message, pressed)
        context.on(self.search.input, self._search, self.search, self.saved, latest=True)
        context.on(self.message.input, self._typed, self.message, None, latest=True)
        self.panel.wire()

    # ── drawing ────────────────────────────────────────────────────────────────────────────────────────────

    def _show(self, window: Window) -> dict[Any, Any]:
        window.changed(SHOWN, True)
        try:
            chatroom.enter(self.context.home, window)
        except SpecError:
            window.state(ChatState).conversation = ""
        state = window.state(ChatState)
        return {
            **self._draw(window, live=True),
            **self.panel.shown(window),
            self.message: state.message,
            self.search: state.search,
        }

    def _call(self, room: Room) -> ChatCall | None:
        return self.context.chat.of(room.id) if room.id else None

    def _draw(self, window: Window, *, live: bool, room: Room | None = None) -> dict[Any, Any]:
        """The views that have changed. Without `live`, the answer is left to the handler that streams it.

        The results of two handlers may reach the browser in reverse order. For SETTLED seconds after an action, ticks therefore
        send the views again; the browser ignores what it already shows.
        """
        context, now = self.context, time.monotonic()
        again = not live and now - self._moving.get(window.name, -SETTLED) < SETTLED
        if live:
            self._moving[window.name] = now
        room = room or chatroom.room(context.home, window)
        call = self._call(room)
        busy = call is not None and not call.ended
        editing = window.state(ChatState).editing
        found: dict[Any, str] = {
            self.saved: bar.saved(context, window, room.id),
            self.top: bar.top(context, window, room),
            self.who: bar.who(context, room, self._notes.get(window.name, "")),
            self.editing: bar.editing_note(context, editing),
        }
        if live or not busy:
            found[self.send] = bar.sending(context, room, call, editing)
            found[self.live] = self._live(room, call)
            found[self.transcript] = (
                self.view.transcript(room, call, editing)
                if room.conversation.exchanges
                else bar.welcome(context, window, room)
            )
        changed: dict[Any, str] = {
            view: html for view, html in found.items() if window.changed(f"chat {view.elem_id}", html) or again
        }
        pulse = f"{room.id} {call.began}" if call is not None and busy else ""
        if pulse and window.changed("chat pulse", pulse):
            changed[self.pulse] = pulse
        return changed

    def _live(self, room: Room, call: ChatCall | None) -> Html:
        expected = room.conversation.exchanges[-1].expected if room.conversation.exchanges else None
        return self.view.live(call, expected, alone=self.context.chat.active() in ([], [call]))

    def _tick(self, window: Window) -> dict[Any, Any]:
        if window.changed(SHOWN, True):
            return self._show(window)  # it came into view before the browser had named its window
        return self._draw(window, live=False)

    def _follow(self, window: Window) -> Iterator[dict[Any, Any]]:
        """Stream an answer. At its end the conversation is read from disk, as after a reload."""
        room = chatroom.room(self.context.home, window)
        call = self._call(room)
        if call is None:
            yield self._draw(window, live=True)
            return
        version, phase, state = -1, "", window.state(ChatState)
        while not call.ended and state.conversation == room.id:
            version = call.wait(version, 1.0)
            if phase != call.phase:
                phase = call.phase
                yield self._draw(window, live=True)
            else:
                shown = self._live(room, call)
                yield {self.live: shown} if window.changed(f"chat {self.live.elem_id}", shown) else {}
            time.sleep(EVERY)
        self._moving[window.name] = time.monotonic()
        if state.conversation != room.id:
            return
        if call.error is None:
            self.context.chat.forget(room.id)
        yield {**self._taken_back(window, call), **self._draw(window, live=True)}

    def _taken_back(self, window: Window, call: ChatCall) -> dict[Any, Any]:
        """Put a question that cannot be answered back into the message box."""
        state, room = window.state(ChatState), chatroom.room(self.context.home, window)
        exchanges = room.conversation.exchanges
        if call.error is None or not state.sent or (exchanges and exchanges[-1].question == state.sent):
            return {}
        state.message, state.sent = state.sent, ""
        return {self.message: state.message}

    # ── input ──────────────────────────────────────────────────────────────────────────────────────────────

    def _search(self, window: Window, text: str) -> Any:
        state = window.state(ChatState)
        state.search = text
        found = bar.saved(self.context, window, state.conversation)
        window.changed(f"chat {self.saved.elem_id}", found)
        return found

    def _typed(self, window: Window, text: str) -> None:
        state = window.state(ChatState)
        if text != state.sent:  # otherwise it was sent in the meantime
            state.message = text

    # ── buttons ────────────────────────────────────────────────────────────────────────────────────────────

    def _send(self, window: Window, text: str, event: Any) -> dict[Any, Any]:
        do, _, _ = parts.pressed(event)
        room = chatroom.room(self.context.home, window)
        if do == "stop":
            if (call := self._call(room)) is not None:
                self.context.chat.stop(call)
            return {}  # the handler that streams the call shows it
        if not text.strip():
            return {}
        return self._ask(window, room, text)

    def _ask(self, window: Window, room: Room, text: str, expected: str | None = None) -> dict[Any, Any]:
        """Send the message, or the edited question, and stream the answer."""
        self._check(window, room)
        record, state = chatroom.record_of(self.context.home, window, room), window.state(ChatState)
        if state.editing is None:
            record.ask(text, expected)
        else:
            record.edit(state.editing, text)
        state.reset("editing", "message", "removed")
        state.sent = text
        return {self.message: "", **self._answer(window, room, record)}

    def _answer(self, window: Window, room: Room, record: Record) -> dict[Any, Any]:
        assert record.history is not None
        window.state(ChatState).conversation = record.history.id
        chatroom.mark_seen(window)
        self.context.chat.begin("answer", record.history.id, chatroom.answering(window, room, record), room.answerers)
        return self._draw(window, live=True)

    def _check(self, window: Window, room: Room) -> None:
        """Raise what would prevent an answer, before anything is changed."""
        chatroom.sampling(window)
        if room.folder is None:
            choices.opened(self.context.home, room.model or DEFAULT_MODEL)  # raises if it cannot be used
        if room.id:
            self.context.chat.check_free(room.id)

    def _press(self, window: Window, event: Any) -> Iterator[dict[Any, Any]]:
        do, value, data = parts.pressed(event)
        room = chatroom.room(self.context.home, window)
        name = data.get("key", value)
        if do == "go":
            yield {self.context.nav: self.context.go(window, value)}
        elif do in ("toggle", "only"):
            yield from self._choose_who(window, room, do, name)
        elif do in ("load", "unload"):
            yield from self._load_or_free(window, room, do)
        else:
            yield self._done(window, room, do, value, data)

    def _done(self, window: Window, room: Room, do: str, value: str, data: Mapping[str, str]) -> dict[Any, Any]:
        """Handle an action that needs no model."""
        context, home, more = self.context, self.context.home, dict[Any, Any]()
        state = window.state(ChatState)
        match do:
            case "new":
                chatroom.start_new(window)
                state.removed = None
            case "open":
                chatroom.show(home, window, value)
                state.removed = None
                more = self.panel.shown(window)
            case "rename":
                state.renaming = value
            case "renamed":
                conversations.rename(home, value, str(data.get("title", "")))
                state.renaming = ""
            case "remove":
                self._remove(window, value)
            case "undo":
                if state.removed is not None:
                    chatroom.show(home, window, conversations.restore(home, state.removed.key))
                state.removed = None
            case "trash.back":
                chatroom.show(home, window, conversations.restore(home, value))
                more = self.panel.shown(window)
            case "trash.empty":
                leftovers.empty_trash(context, conversations.KIND)
                state.removed = None
            case "model":
                state.model = value
            case "settings":
                state.settings = not state.settings
                more = self.panel.shown(window)
            case "others":
                state.examples += bar.OFFERED
            case "edit":
                more = self._edit(window, room, value)
            case "choose":
                Record(room.history).choose(value or None)
                state.lead = value
            case "again" if room.history is not None:
                self._check(window, room)
                record = chatroom.record_of(home, window, room)
                record.again()
                return self._answer(window, room, record)
            case "try":
                example = bar.held_out(room)[int(value)]
                state.system = example.system
                return {
                    **self._ask(window, room, example.question, example.reference),
                    self.panel.system: example.system,
                }
            case "notice.close":
                context.chat.forget(room.id)
        return {**more, **self._draw(window, live=True)}

    def _edit(self, window: Window, room: Room, value: str) -> dict[Any, Any]:
        state = window.state(ChatState)
        if not value:
            state.reset("editing", "message")
            return {self.message: ""}
        question = room.conversation.exchanges[int(value)].question or ""
        state.editing, state.message = int(value), question
        return {self.message: question}

    def _remove(self, window: Window, id: str) -> None:  # noqa: A002 - the conversation's
        self.context.chat.check_free(id)
        name = conversations.read(conversations.open_one(self.context.home, id)).name
        key = conversations.remove(self.context.home, id)
        self.context.chat.forget(id)
        state = window.state(ChatState)
        state.removed = Removed(key, name)
        if state.conversation == id:
            chatroom.start_new(window)

    def _choose_who(self, window: Window, room: Room, do: str, name: str) -> Iterator[dict[Any, Any]]:
        """Change the answering models. One that answers alone is swapped in at once if the base is in memory."""
        if do == "only":
            chatroom.only(window, name)
        elif not chatroom.toggle(window, room, name):
            return
        self._notes.pop(window.name, None)
        yield self._draw(window, live=True)
        room = chatroom.room(self.context.home, window)
        opened, chat = self.context.chat.opened, self.context.chat
        loaded = opened is not None and room.folder is not None and opened["path"] == str(room.folder.path)
        if len(room.answerers) > 1 or not loaded or chat.active():
            return
        values = {**chatroom.request(window, room), "answerer": room.leading}
        call = chat.begin("use", f"use {window.name}", values)
        result = yield from self._until_ended(window, call)
        if result is not None:
            who = room.leading or self.t("common.base")
            self._notes[window.name] = self.t("chat.answers_now", name=who, n=self.context.f.number(result["ms"], 1))
            yield self._draw(window, live=False)

    def _load_or_free(self, window: Window, room: Room, do: str) -> Iterator[dict[Any, Any]]:
        """Load the selected model, or free its memory."""
        chat = self.context.chat
        if do == "unload":
            chat.unload()
            yield self._draw(window, live=True)
            return
        call = chat.begin("open", f"open {window.name}", chatroom.request(window, room))
        yield from self._until_ended(window, call)

    def _until_ended(self, window: Window, call: ChatCall) -> Generator[dict[Any, Any], None, Mapping[str, Any] | None]:
        """Wait for a request without an answer; returns its result. Raises its error."""
        version = -1
        while not call.ended:
            version = call.wait(version, 1.0)
            yield self._draw(window, live=False)
        self.context.chat.forget(call.conversation)
        yield self._draw(window, live=False)
        if call.error is not None:
            raise call.error
        return call.result
