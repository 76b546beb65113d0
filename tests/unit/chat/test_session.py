"""A conversation: turns, context, retry, adapters, comparison."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from finetune_local.chat import history
from finetune_local.chat.session import ChatSession
from finetune_local.data.conversation import Message
from finetune_local.inference.engine import Opened
from finetune_local.inference.sampling import Sampling
from finetune_local.system.errors import AdapterError, SpecError
from made import made_adapter

SHORT = Sampling(temperature=0.8, seed=1, max_tokens=8)


@pytest.fixture
def chat(opened: Opened) -> ChatSession:
    return ChatSession(opened, SHORT, "Be brief.", history.new(opened.home))


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
    with pytest.raises(SpecError, match="no answer to regenerate"):
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


def test_each_answerer_is_asked_with_its_own_template(chat: ChatSession) -> None:
    """An adapter that brings one in a comparison, and in a conversation that goes on with another answerer."""
    opened = chat.opened
    folder = opened.home.adapters / "诗人"
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}[the {{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}",
        "utf-8",
    )
    told: list[str] = []
    opened.load("formal")
    opened.load("诗人", told.append)
    assert told == ["诗人: used with what it comes with: its own chat template"]
    asked: dict[str | None, str] = {}
    for name in (None, "formal", "诗人"):
        chat.use(name)
        asked[name] = opened.tokenizer.text(chat.prompt()[0], special=True)
    assert asked[None] == asked["formal"] != asked["诗人"] == "[the system] Be brief.\n[assistant] "
    chat.use("formal")
    turns = chat.ask_all("one")
    lengths = {turn.adapter: turn.result.prompt_tokens for turn in turns}
    assert lengths[None] == lengths["formal"] != lengths["诗人"]
    started = time.perf_counter()
    for _ in range(20):
        for name in (None, "formal", "诗人"):
            chat.use(name)
            assert opened.tokenizer is opened.tokenizer_of(name)
    assert time.perf_counter() - started < 1, "a swap reads no file"
    opened.drop("诗人")
    (folder / "chat_template.jinja").unlink()
    opened.load("诗人")
    assert opened.tokenizer is opened.tokenizer_of(None)


def test_sampling_is_changed_by_name(chat: ChatSession) -> None:
    chat.set_sampling("temperature", "0")
    chat.set_sampling("top-k", "5")
    chat.set_sampling("seed", "auto")
    assert (chat.sampling.temperature, chat.sampling.top_k, chat.sampling.seed) == (0.0, 5, None)
    with pytest.raises(SpecError, match="Did you mean 'temperature'"):
        chat.set_sampling("temprature", "1")
    with pytest.raises(SpecError, match="top_p"):
        chat.set_sampling("top_p", "7")


def test_swapping_back_goes_on_with_what_that_adapter_has_read(chat: ChatSession) -> None:
    tokenizer, session = chat.opened.tokenizer, chat.opened.session
    header = len(tokenizer.ids("<|im_start|>assistant\n"))

    def rule(adapter: str | None, ids: Sequence[int]) -> np.ndarray:
        """Each says a sentence of its own, which is cut into the same tokens when it is read again."""
        sentence = [
            *tokenizer.ids("The dog does not mind at all." if adapter else "The capital of France is Paris."),
            2,
        ]
        said = len(ids) - (len(ids) - 1 - list(ids)[::-1].index(1)) - header
        logits = np.zeros(tokenizer.vocabulary_size, np.float32)
        logits[sentence[max(0, min(said, len(sentence) - 1))]] = 100
        return logits

    formal = chat.opened.load("formal")
    session.rule = rule  # type: ignore[attr-defined]
    chat.sampling = Sampling(temperature=0, max_tokens=30)
    answers = []
    for name in (None, formal, None, formal, None):
        chat.use(name)
        answers.append(chat.ask(f"to {name}").result.text)
    assert answers == ["The capital of France is Paris.", "The dog does not mind at all."] * 2 + answers[:1]
    assert session.decoders == 2, "one text for each, and each goes on"  # type: ignore[attr-defined]


def test_an_adapter_that_was_written_anew_is_loaded_anew(chat: ChatSession, tiny: Path) -> None:
    opened = chat.opened
    opened.load("formal")
    first = chat.ask("one").result.text
    chat.undo()
    made_adapter(tiny, opened.home.adapters / "formal", seed=7, strength=0.002)
    os.utime(opened.home.adapters / "formal" / "adapter_model.safetensors", (5, 5))
    assert opened.load("formal") == "formal" and list(opened.adapters) == ["formal"]
    assert chat.ask("one").result.text != first


def test_answers_of_a_side_by_side_round_are_kept_as_they_come(chat: ChatSession) -> None:
    chat.opened.load("formal")
    chat.record.ask("one")
    kept: list[int] = []

    def on_turn(_turn: object) -> None:
        assert chat.history
        kept.append(len(chat.history.read().exchanges[-1].answers))

    turns = chat.answer_by((None, "formal"), None, on_turn=on_turn)
    assert kept == [1, 2] and chat.opened.active is None
    assert turns[0].swap_ms is not None and turns[0].result.first_seconds > 0
    assert chat.conversation.exchanges[-1].chosen == 0 and chat.conversation.answered_by is None
    with pytest.raises(SpecError, match="ask something"):
        chat.answer_by((None,), None)
