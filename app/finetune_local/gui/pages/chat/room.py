"""The chat of a window, from its state: the conversation, the base, the answering models, and their settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_local.adapters.library import is_adapter
from finetune_local.chat import choices, conversations
from finetune_local.chat import history as histories
from finetune_local.chat.choices import MOST_ANSWERERS, Offer
from finetune_local.chat.history import Conversation, History
from finetune_local.chat.record import Record
from finetune_local.gui.pages.chat.state import ChatState, Seen
from finetune_local.inference.sampling import Sampling
from finetune_local.system.errors import ModelError, SpecError
from finetune_local.system.fields import parse
from finetune_local.system.messages import message_of

if TYPE_CHECKING:
    from finetune_local.gui.shell.windows import Window
    from finetune_local.models.folder import ModelFolder
    from finetune_local.system.paths import Home

BASE = ""
"""The base among the names of answering models, where JSON or HTML cannot represent None."""


@dataclass(frozen=True)
class Room:
    """A snapshot of a window's chat. `folder` is None if the base is not installed; `missing` then says so."""

    history: History | None
    conversation: Conversation
    model: str | None
    folder: ModelFolder | None
    missing: str
    offers: tuple[Offer, ...]
    answerers: tuple[str | None, ...]
    leading: str | None

    @property
    def id(self) -> str:
        """The conversation's id; "" for a new one."""
        return self.history.id if self.history else ""

    @property
    def adapters(self) -> list[str]:
        """The answering adapters, without the base."""
        return [name for name in self.answerers if name is not None]


def enter(home: Home, window: Window) -> None:
    """Take over the selection of another page: a conversation, or adapters. Raises SpecError if it no longer exists."""
    state, shared = window.state(ChatState), window.shared
    conversation, adapters = _choice(window)
    seen_conversation, seen_adapters = state.seen
    if conversation and conversation != seen_conversation:
        show(home, window, conversation)
    elif adapters and adapters != seen_adapters:
        if not _fit(home, state.model or shared.model or None, adapters):
            state.conversation, state.model = "", choices.base(home, None, adapters) or ""
        shared.adapters = adapters[:MOST_ANSWERERS]
        state.base, state.lead = len(adapters) < MOST_ANSWERERS, adapters[0]
    mark_seen(window)


def _choice(window: Window) -> Seen:
    return window.state(ChatState).conversation or None, window.shared.adapters


def _fit(home: Home, model: str | None, adapters: Sequence[str]) -> bool:
    """Whether all these adapters fit a base."""
    try:
        folder = choices.opened(home, model) if model else None
    except ModelError:
        folder = None
    if folder is None:
        return False
    return all(not offer.problem for offer in choices.offers(home, folder, adapters) if offer.name in adapters)


def show(home: Home, window: Window, id: str) -> None:  # noqa: A002 - the conversation's
    """Show a saved conversation, with the base and the adapters that answered last. Raises SpecError if it no longer exists."""
    history = conversations.open_one(home, id)
    conversation = conversations.read(history)
    last = next((e for e in reversed(conversation.exchanges) if e.answers), None)
    named = [answer.adapter for answer in last.answers] if last else []
    started_with = [str(name) for name in conversation.begun.get("adapters", ()) if is_adapter(Path(str(name)))]
    known = {offer.name for offer in choices.listed(home)}
    adapters = [name for name in named if name in known] or ([] if None in named else _names(home, started_with))
    chosen = last.answer() if last else None
    state = window.state(ChatState)
    window.shared.adapters = tuple(dict.fromkeys(adapters))[:MOST_ANSWERERS]
    state.conversation, state.editing = id, None
    state.base = None in named or not adapters
    state.lead = None if chosen is None else chosen.adapter or BASE
    state.model = _model_name(home, conversation.begun.get("model"))
    state.system = conversation.system or ""
    mark_seen(window)


def start_new(window: Window) -> None:
    """Start a new conversation with the same base, adapters and system prompt."""
    window.state(ChatState).reset("conversation", "editing")
    mark_seen(window)


def mark_seen(window: Window) -> None:
    """Mark the current selection as seen, so that it does not count as another page's."""
    window.state(ChatState).seen = _choice(window)


def _names(home: Home, folders: Sequence[str]) -> list[str]:
    """Adapters by their library names; others keep their folders."""
    known = {offer.folder.resolve(): offer.name for offer in choices.listed(home)}
    return [known.get(Path(folder).resolve(), folder) for folder in folders]


def _model_name(home: Home, model: object) -> str:
    """The name of a base in the home folder, or its path; "" for none."""
    if not model:
        return ""
    path = Path(str(model))
    return path.name if path.is_absolute() and path.parent == home.models.absolute() else str(model)


def room(home: Home, window: Window) -> Room:
    """The Room of a window."""
    state, history, conversation = window.state(ChatState), None, Conversation()
    if state.conversation:
        try:
            history = conversations.open_one(home, state.conversation)
            conversation = conversations.read(history)
        except SpecError:
            state.conversation = ""  # removed in another window, or by hand
            mark_seen(window)
    wanted = window.shared.adapters
    model = state.model or choices.base(home, window.shared.model or None, wanted)
    folder, missing = None, ""
    try:
        folder = choices.opened(home, model) if model else None
    except ModelError as error:
        missing = message_of(error)
    offers = tuple(choices.offers(home, folder, wanted)) if folder is not None else ()
    good = {offer.name for offer in offers if not offer.problem}
    adapters = [name for name in wanted if name in good]
    base = state.base or not adapters
    answerers = (*((None,) if base else ()), *adapters)[:MOST_ANSWERERS]
    return Room(history, conversation, model, folder, missing, offers, answerers, _leading(state, answerers))


def _leading(state: ChatState, answerers: Sequence[str | None]) -> str | None:
    """The model whose answer the conversation continues with: the one selected last, else the adapter added last."""
    lead = None if state.lead == BASE else state.lead
    chosen = state.lead is not None and lead in answerers
    return lead if chosen else answerers[-1]


def toggle(window: Window, chat: Room, name: str) -> bool:
    """Add or remove an answering adapter (BASE: the base). At least one must answer; returns False if nothing changed."""
    wanted = None if name == BASE else name
    answerers = list(chat.answerers)
    if wanted in answerers:
        if len(answerers) == 1:
            return False
        answerers.remove(wanted)
    elif len(answerers) < MOST_ANSWERERS:
        answerers.append(wanted)
    else:
        return False
    _answer_by(window, answerers)
    return True


def only(window: Window, name: str) -> None:
    """Let only this model answer from now on."""
    _answer_by(window, [None if name == BASE else name])


def _answer_by(window: Window, answerers: Sequence[str | None]) -> None:
    window.shared.adapters = tuple(name for name in answerers if name is not None)
    window.state(ChatState).base = None in answerers
    mark_seen(window)


def sampling(window: Window) -> Sampling:
    """The sampling settings as typed. Raises SpecError with a sentence for each invalid one."""
    return parse(Sampling, window.state(ChatState).sampling, "sampling")


def request(window: Window, chat: Room) -> dict[str, object]:
    """The fields common to all requests to the chat process."""
    state = window.state(ChatState)
    return {
        "model": str(chat.folder.path) if chat.folder is not None else chat.model,
        "adapters": chat.adapters,
        "backend": state.backend,
        "precision": state.precision or None,
    }


def answering(window: Window, chat: Room, record: Record) -> Mapping[str, Any]:
    """The request to answer the open question of a saved record. Raises SpecError."""
    assert record.history is not None
    return {
        **request(window, chat),
        "conversation": record.history.id,
        "answerers": list(chat.answerers),
        "leading": chat.leading,
        "sampling": sampling(window).model_dump(),
    }


def record_of(home: Home, window: Window, chat: Room) -> Record:
    """The conversation's record; a new one gets the window's settings. Its system prompt becomes the window's."""
    history = chat.history
    if history is None:
        folders = {offer.name: str(offer.folder.resolve()) for offer in chat.offers}
        model = str(chat.folder.path) if chat.folder is not None else chat.model
        history = histories.new(home, model, [folders[name] for name in chat.adapters])
    record = Record(history)
    record.set_system(window.state(ChatState).system.strip())
    return record
