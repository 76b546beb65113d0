"""What a window's chat is about: what other pages ask for, who answers, whose answer the conversation goes on with."""

from __future__ import annotations

import pytest

from finetune_local.chat import history
from finetune_local.chat.record import Record
from finetune_local.gui.pages.chat import room as chatroom
from finetune_local.gui.pages.chat.room import BASE
from finetune_local.gui.pages.chat.state import ChatState
from finetune_local.gui.shell.windows import Window
from finetune_local.system import paths
from finetune_local.system.errors import SpecError
from made import made_adapter
from tiny import tiny_model

NAMES = ("a", "b", "c", "诗人")


@pytest.fixture
def stocked(home: paths.Home) -> paths.Home:
    base = tiny_model(home.models / "tiny 小")
    for seed, name in enumerate(NAMES):
        made_adapter(base, home.adapters / name, seed)
    made_adapter(tiny_model(home.models / "qwen", "qwen3"), home.adapters / "other", seed=9)
    return home


@pytest.fixture
def window() -> Window:
    return Window(None, "w", {})


def room(home: paths.Home, window: Window) -> chatroom.Room:
    chatroom.enter(home, window)
    return chatroom.room(home, window)


def test_adapters_of_another_page_answer_beside_the_base_and_bring_theirs(stocked: paths.Home, window: Window) -> None:
    window.shared.model = "tiny 小"
    assert room(stocked, window).answerers == (None,)
    window.shared.adapters = ("a",)
    chat = room(stocked, window)
    assert (chat.answerers, chat.leading, chat.model) == ((None, "a"), "a", "tiny 小")
    window.shared.adapters = ("other",)
    chat = room(stocked, window)
    assert (chat.answerers, chat.model, chat.missing) == ((None, "other"), "qwen", "")
    assert window.shared.model == "tiny 小", "what is trained next is no matter of the chat"
    window.shared.adapters = ("a", "b", "c", "诗人")
    chat = room(stocked, window)
    assert chat.answerers == ("a", "b", "c", "诗人"), "four at most"


def test_who_answers_is_chosen_within_bounds(stocked: paths.Home, window: Window) -> None:
    window.shared.model = "tiny 小"
    assert not chatroom.toggle(window, room(stocked, window), BASE), "one at least answers"
    for name in NAMES[:3]:
        assert chatroom.toggle(window, room(stocked, window), name)
    chat = room(stocked, window)
    assert chat.answerers == (None, "a", "b", "c") and chat.leading == "c"
    assert not chatroom.toggle(window, chat, "诗人"), "four at most"
    assert chatroom.toggle(window, chat, BASE)
    assert room(stocked, window).answerers == ("a", "b", "c")
    chatroom.only(window, "诗人")
    assert room(stocked, window).answerers == ("诗人",)
    window.state(ChatState).lead = BASE
    assert chatroom.toggle(window, room(stocked, window), BASE)
    assert room(stocked, window).leading is None, "the one that was chosen last leads"


def test_adapters_that_do_not_fit_do_not_answer(stocked: paths.Home, window: Window) -> None:
    window.shared.adapters = ("a",)
    room(stocked, window)
    window.state(ChatState).model = "qwen"
    chat = chatroom.room(stocked, window)
    assert chat.answerers == (None,)
    window.state(ChatState).model = "tiny 小"
    assert chatroom.room(stocked, window).answerers == (None, "a")


def test_a_kept_conversation_comes_with_what_answered_in_it_last(stocked: paths.Home, window: Window) -> None:
    begun = str(stocked.models / "tiny 小"), [str(stocked.adapters / "a")]
    record = Record(history.new(stocked, *begun))
    record.set_system("be brief")
    record.ask("one?")
    record.add({"aside": "b", "content": "x"}, {"role": "assistant", "content": "y", "adapter": None})
    record.add({"aside": "gone", "content": "z"})
    assert record.history is not None
    window.state(ChatState).conversation = record.history.id
    window.shared.model = "qwen"
    chat = room(stocked, window)
    assert (chat.answerers, chat.leading, chat.model) == ((None, "b"), None, "tiny 小")
    assert window.state(ChatState).system == "be brief"
    fresh = Record(history.new(stocked, *begun))
    fresh.ask("two?")
    assert fresh.history is not None
    chatroom.show(stocked, window, fresh.history.id)
    assert room(stocked, window).answerers == ("a",), "before its first answer: those it was begun with"
    fresh.history.path.unlink()
    chat = room(stocked, window)
    assert chat.id == "" and window.state(ChatState).conversation == ""


def test_a_new_conversation_says_what_it_is_begun_with(stocked: paths.Home, window: Window) -> None:
    window.shared.adapters = ("诗人",)
    window.state(ChatState).system = " brief "
    window.state(ChatState).sampling = {"max_tokens": "7"}
    chat = room(stocked, window)
    record = chatroom.record_of(stocked, window, chat)
    record.ask("one?")
    assert record.history is not None
    read = history.find(stocked, "latest").read()
    assert read.begun["model"] == str(stocked.models / "tiny 小")
    assert read.begun["adapters"] == [str((stocked.adapters / "诗人").resolve())]
    assert read.system == "brief"
    asked = chatroom.answering(window, chat, record)
    assert asked["answerers"] == [None, "诗人"] and asked["leading"] == "诗人" and asked["adapters"] == ["诗人"]
    assert asked["sampling"]["max_tokens"] == 7 and asked["conversation"] == record.history.id
    window.state(ChatState).sampling = {"max_tokens": "-1", "top_p": "x"}
    with pytest.raises(SpecError, match="max_tokens") as error:
        chatroom.sampling(window)
    assert len(str(error.value).splitlines()) == 2
