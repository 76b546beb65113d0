from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_local.data.conversation import Conversation, Message, RowRejected, Source
from finetune_local.data.encoding.encode import check_kind, encode, kept, prompt_ids
from finetune_local.data.tokenizers.tokenizer import Tokenizer
from finetune_local.spec.objectives import objectives

SOURCE = Source("数据.jsonl", 7)
LONG = 10_000


def chat(*contents: str, system: str | None = None, train: bool = True) -> Conversation:
    messages = [Message("user" if i % 2 == 0 else "assistant", c, train) for i, c in enumerate(contents)]
    return Conversation(tuple([Message("system", system), *messages] if system else messages), SOURCE)


def learned(tokenizer: Tokenizer, ids: np.ndarray, mask: np.ndarray) -> str:
    return tokenizer.text(ids[mask].tolist(), special=True)


def test_a_chat_is_one_row_with_its_answers_supervised(tokenizer: Tokenizer) -> None:
    (row,) = encode(chat("hi", "Yes.", "and?", "好。"), tokenizer, "chat", LONG)
    assert row.ids.dtype == np.int32
    assert row.mask.dtype == np.bool_
    assert row.source == SOURCE
    assert learned(tokenizer, row.ids, row.mask) == "Yes.<|im_end|>好。<|im_end|>"
    assert row.mask[-1], "what follows the last answer is left off"
    whole = tokenizer.text(row.ids.tolist(), special=True)
    assert whole == tokenizer.render(chat("hi", "Yes.", "and?", "好。").messages).rstrip("\n")


def test_the_front_is_cut_at_exchanges_until_it_fits(tokenizer: Tokenizer) -> None:
    turns = [f"{word} {i}" for i in range(8) for word in ("question", "answer")]
    whole = chat(*turns, system="Be short.")
    (full,) = encode(whole, tokenizer, "chat", LONG)
    assert full.cut == 0
    for limit in (len(full.ids) - 1, len(full.ids) // 2, 60):
        (row,) = encode(whole, tokenizer, "chat", limit)
        text = tokenizer.text(row.ids.tolist(), special=True)
        assert len(row.ids) <= limit
        assert row.cut > 0
        assert row.cut % 2 == 0
        assert text.startswith("<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\n")
        assert text.endswith("answer 7<|im_end|>")
        left = kept(whole.messages, row.cut)
        assert [m.role for m in left[:2]] == ["system", "user"]
        assert text == tokenizer.render(left).rstrip("\n")
        # No more than needed was cut: with one exchange more it would be too long.
        more = Conversation(kept(whole.messages, row.cut - 2), SOURCE)
        assert len(encode(more, tokenizer, "chat", LONG)[0].ids) > limit


def test_an_exchange_that_does_not_fit_is_refused_with_its_length(tokenizer: Tokenizer) -> None:
    whole = chat("short", "short", "word " * 40, "end")
    needed = len(encode(Conversation(whole.messages[2:], SOURCE), tokenizer, "chat", LONG)[0].ids)
    with pytest.raises(RowRejected, match=rf"{needed} tokens.*--max-length") as caught:
        encode(whole, tokenizer, "chat", 30)
    assert f"Raise --max-length to {needed}" in str(caught.value)
    assert encode(whole, tokenizer, "chat", needed)[0].cut == 2


def test_tool_turns_stay_with_their_question(tokenizer: Tokenizer) -> None:
    roles = ("user", "assistant", "tool", "assistant", "user", "assistant", "tool", "assistant")
    messages = tuple(Message(role, f"{role} {i}") for i, role in enumerate(roles))  # type: ignore[arg-type]
    (full,) = encode(Conversation(messages, SOURCE), tokenizer, "chat", LONG)
    (row,) = encode(Conversation(messages, SOURCE), tokenizer, "chat", len(full.ids) - 1)
    assert kept(messages, row.cut)[0] == messages[4]


@pytest.mark.parametrize(
    ("conversation", "reason"),
    [
        (chat("only a question"), "no assistant turn"),
        (chat("q", "a", train=False), "weight of 0"),
        (Conversation((), SOURCE, "x", ends=False), "single token"),
    ],
)
@pytest.mark.parametrize("template", ["chat", "raw"])
def test_rows_with_nothing_to_learn_are_refused(
    tokenizer: Tokenizer, conversation: Conversation, reason: str, template: str
) -> None:
    with pytest.raises(RowRejected, match=reason):
        encode(conversation, tokenizer, template, LONG)  # type: ignore[arg-type]


def test_a_question_without_answer_at_the_end_is_left_off(tokenizer: Tokenizer) -> None:
    (row,) = encode(chat("q", "a", "unanswered"), tokenizer, "chat", LONG)
    (same,) = encode(chat("q", "a"), tokenizer, "chat", LONG)
    assert row.ids.tolist() == same.ids.tolist()


def test_raw_joins_the_texts_as_they_are(tokenizer: Tokenizer) -> None:
    (row,) = encode(chat("Q: how?\nA: ", "so  "), tokenizer, "raw", LONG)
    assert tokenizer.text(row.ids.tolist(), special=True) == "Q: how?\nA: so  <|endoftext|>"
    assert learned(tokenizer, row.ids, row.mask) == "so  <|endoftext|>"
    assert row.ids[~row.mask].tolist() == prompt_ids([Message("user", "Q: how?\nA: ")], tokenizer, "raw")


def test_raw_begins_as_the_tokenizer_does(tokenizer_for: Callable[[str], Tokenizer]) -> None:
    for name in ("llama3", "llama2"):
        tokenizer = tokenizer_for(name)
        (row,) = encode(chat("one", " two"), tokenizer, "raw", LONG)
        assert tokenizer.text(row.ids.tolist()) == "one two"
        assert row.ids.tolist()[: len(tokenizer.ids("one")) + 1] == tokenizer.ids("one", special=True)
        assert row.ids[-1] == tokenizer.eos_id
        assert not row.mask[0]


def test_the_first_token_is_never_supervised(tokenizer: Tokenizer) -> None:
    opening = Conversation((Message("assistant", "Hello, who are you?"), Message("user", "me")), SOURCE)
    (row,) = encode(opening, tokenizer, "raw", LONG)
    assert not row.mask[0]
    assert row.mask[1:].all()


def test_a_plain_text_is_learned_whole_and_cut_into_pieces(tokenizer: Tokenizer) -> None:
    text = "今天天气很好，我们去公园散步吧。" * 20
    rows = encode(Conversation((), SOURCE, text), tokenizer, "chat", 50)
    assert len(rows) > 2
    assert all(len(row.ids) == 50 for row in rows[:-1])
    joined = [int(i) for row in rows for i in row.ids]
    assert joined == [*tokenizer.ids(text), tokenizer.eos_id]
    assert all(not row.mask[0] and row.mask[1:].all() for row in rows)
    going_on = encode(Conversation((), SOURCE, text, ends=False), tokenizer, "chat", LONG)
    assert going_on[0].ids.tolist() == joined[:-1]


CONTENT = st.text(st.sampled_from("ab .\n你好🙂<|>"), min_size=1, max_size=12).filter(str.strip)


@given(st.lists(CONTENT, min_size=2, max_size=9), st.integers(12, 120), st.sampled_from(["chat", "raw"]))
def test_any_chat_fits_and_learns_its_last_answer_or_is_refused(
    tokenizer: Tokenizer, contents: list[str], limit: int, template: str
) -> None:
    whole = chat(*contents)
    try:
        (row,) = encode(whole, tokenizer, template, limit)  # type: ignore[arg-type]
    except RowRejected:
        return
    assert len(row.ids) == len(row.mask) <= limit
    assert not row.mask[0]
    last = contents[len(contents) // 2 * 2 - 1]
    end = "<|im_end|>" if template == "chat" else "<|endoftext|>"
    assert learned(tokenizer, row.ids, row.mask).endswith(last + end)


def test_a_pair_becomes_two_rows_of_one_example(tokenizer: Tokenizer) -> None:
    whole = chat("hi", "Yes.", "and?", "好。")
    messages = (*whole.messages[:1], replace(whole.messages[1], train=False), *whole.messages[2:])
    pair = Conversation(messages, SOURCE, rejected=Message("assistant", "No, never."))
    chosen, rejected = encode(pair, tokenizer, "chat", LONG)
    assert (chosen.weight, rejected.weight, chosen.example, rejected.example) == (1.0, -1.0, 0, 0)
    prompt = len(prompt_ids(messages[:-1], tokenizer, "chat"))
    assert chosen.ids[:prompt].tolist() == rejected.ids[:prompt].tolist()
    for row, answer in ((chosen, "好。"), (rejected, "No, never.")):
        assert not row.mask[:prompt].any() and row.mask[prompt:].all()
        assert tokenizer.text(row.ids[row.mask].tolist()) == answer
    for row in encode(pair, tokenizer, "chat", len(rejected.ids) - 1):  # both lose the same turns
        assert row.cut == 2
    with pytest.raises(RowRejected, match="learns from"):
        check_kind(objectives()["sft"], pair)
