"""A conversation: turns, context, retry, adapters, comparison."""

import pytest

from finetune_local.chat import history
from finetune_local.chat.opening import Opened
from finetune_local.chat.sampling import Sampling
from finetune_local.chat.session import ChatSession
from finetune_local.data.conversation import Message
from finetune_local.errors import AdapterError, SpecError

SHORT = Sampling(temperature=0.8, seed=1, max_tokens=8)


@pytest.fixture
def chat(opened: Opened) -> ChatSession:
    return ChatSession(opened, SHORT, "Be brief.", history.new(opened.home, {}))


def test_turns_alternate_and_are_on_disk_as_they_happen(chat: ChatSession) -> None:
    seen_on_disk = []

    def on_text(_piece: str) -> None:
        assert chat.history
        seen_on_disk.append(chat.history.read().turns)

    turn = chat.ask("你好", on_text)
    assert seen_on_disk[0] == [Message("user", "你好")], "the question is kept before its answer begins"
    assert chat.history and chat.history.read().turns == chat.turns
    assert chat.turns == [Message("user", "你好"), Message("assistant", turn.result.text)]
    assert chat.prompt()[0][: turn.result.prompt_tokens] == chat.opened.tokenizer.prompt_ids(
        [Message("system", "Be brief."), Message("user", "你好")]
    )


def test_a_conversation_goes_on_where_it_ended(chat: ChatSession) -> None:
    chat.ask("one")
    assert chat.history
    again = ChatSession(chat.opened, SHORT, history=history.History(chat.history.path))
    assert (again.turns, again.conversation.system) == (chat.turns, "Be brief.")
    assert again.ask("two").result.text == chat.ask("two").result.text


def test_retry_says_something_else_and_undo_takes_back(chat: ChatSession) -> None:
    with pytest.raises(SpecError, match="nothing"):
        chat.retry()
    first = chat.ask("one").result
    second = chat.retry().result
    assert first.text != second.text and first.prompt_tokens == second.prompt_tokens
    assert chat.turns == [Message("user", "one"), Message("assistant", second.text)]
    assert chat.undo() and chat.turns == [] and not chat.undo()
    assert chat.ask("one").result.text == first.text


def test_a_full_context_leaves_out_the_oldest_exchanges_and_keeps_the_system_prompt(chat: ChatSession) -> None:
    left_out = [chat.ask(f"question {number} " + "word " * 12).left_out for number in range(12)]
    assert left_out[0] == 0 and left_out[-1] > 0 and left_out == sorted(left_out)
    assert len(chat.turns) == 24, "the history keeps all of it"
    ids, dropped = chat.prompt()
    assert len(ids) + SHORT.max_tokens <= chat.opened.model.context_length
    text = chat.opened.tokenizer.text(ids)
    assert "Be brief." in text and "question 11 " in text and "question 0 " not in text
    assert dropped


def test_a_question_longer_than_the_context_is_refused_and_taken_back(chat: ChatSession) -> None:
    with pytest.raises(SpecError, match="context is 512"):
        chat.ask("很长" * 600)
    assert chat.turns == []
    assert chat.ask("short").left_out == 0


def test_an_answer_stopped_before_its_first_word_leaves_the_question_open(chat: ChatSession) -> None:
    assert chat.ask("one", interrupted=lambda: True).result.stop == "interrupted"
    assert [turn.role for turn in chat.turns] == ["user"]
    chat.retry()
    assert [turn.role for turn in chat.turns] == ["user", "assistant"]
    chat.ask("two", interrupted=lambda: True)
    chat.ask("three")
    assert [turn.content for turn in chat.turns if turn.role == "user"] == ["one", "three"]


def test_adapters_swap_in_mid_conversation(chat: ChatSession) -> None:
    opened = chat.opened
    formal, poet = opened.load("formal"), opened.load("诗人")
    assert (formal, poet, opened.active) == ("formal", "诗人", "诗人")
    assert opened.load("formal") == "formal", "loading again only activates"
    assert opened.session.adapters() == ["formal", "诗人"]
    chat.use(None)
    base = chat.ask("one").result.text
    chat.undo()
    chat.use("formal")
    assert chat.ask("one").result.text != base
    chat.undo()
    assert chat.use(None) >= 0
    assert chat.ask("one").result.text == base
    with pytest.raises(SpecError, match="formal, 诗人"):
        chat.use("nobody")


def test_an_adapter_that_does_not_load_leaves_the_active_one(chat: ChatSession) -> None:
    chat.opened.load("formal")
    with pytest.raises(AdapterError, match="Did you mean 'formal'"):
        chat.opened.load("formall")
    assert chat.opened.active == "formal"


def test_comparing_answers_one_prompt_by_all_and_goes_on_with_the_active_one(chat: ChatSession) -> None:
    chat.opened.load("formal")
    pieces: dict[str | None, str] = {None: "", "formal": ""}

    def on_text(name: str | None, text: str) -> None:
        pieces[name] += text

    base, formal = chat.ask_all("one", on_text)
    assert (base.adapter, formal.adapter) == (None, "formal")
    assert pieces == {None: base.result.text, "formal": formal.result.text}
    assert base.result.text != formal.result.text
    assert chat.turns[-1] == Message("assistant", formal.result.text)
    assert chat.opened.active == chat.opened.session.active == "formal"  # type: ignore[attr-defined]


def test_sampling_is_changed_by_name(chat: ChatSession) -> None:
    chat.set_sampling("temperature", "0")
    chat.set_sampling("top-k", "5")
    chat.set_sampling("seed", "auto")
    assert (chat.sampling.temperature, chat.sampling.top_k, chat.sampling.seed) == (0.0, 5, None)
    with pytest.raises(SpecError, match="Did you mean 'temperature'"):
        chat.set_sampling("temprature", "1")
    with pytest.raises(SpecError, match="top_p"):
        chat.set_sampling("top_p", "7")
