from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_local.data.tokenizers.tokenizer import Tokenizer

Make = Callable[[str], Tokenizer]
KINDS = ("chatml", "llama2", "gemma")  # byte-level; ▁ words with byte fallback, with and without a first space

TEXTS = st.text(st.sampled_from("ab 你好🙂é\n\t<s>👩‍👩‍👧"), max_size=30)


def streamed(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    streamer = tokenizer.streamer()
    return [*(streamer.push(i) for i in ids), streamer.finish()]


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS)
def test_pieces_of_a_text_join_to_it_and_are_whole(tokenizer_for: Make, kind: str, text: str) -> None:
    tokenizer = tokenizer_for(kind)
    ids = tokenizer.ids(text)
    pieces = streamed(tokenizer, ids)
    assert "".join(pieces) == tokenizer.text(ids)
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_pieces_of_any_ids_join_to_their_text(tokenizer_for: Make, kind: str, data: st.DataObject) -> None:
    tokenizer = tokenizer_for(kind)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocabulary_size - 1), max_size=40))
    assert "".join(streamed(tokenizer, ids)) == tokenizer.text(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_a_character_of_several_tokens_comes_once_it_is_whole(tokenizer_for: Make, kind: str) -> None:
    tokenizer = tokenizer_for(kind)
    ids = tokenizer.ids("x🙂")
    assert len(ids) >= 5
    pieces = streamed(tokenizer, ids)
    assert [p for p in pieces if p] == ["x", "🙂"]
    assert pieces[-2] == "🙂"  # with its last token, not with finish()


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_cut_within_a_character_keeps_those_before_it(tokenizer_for: Make, kind: str) -> None:
    tokenizer = tokenizer_for(kind)
    ids = tokenizer.ids("你🙂")[:-1]
    assert tokenizer.text(ids).startswith("你\ufffd")


def test_spaces_between_words_are_kept(tokenizer_for: Make) -> None:
    tokenizer = tokenizer_for("llama2")
    ids = tokenizer.ids("The capital of France")
    assert "".join(streamed(tokenizer, ids)) == "The capital of France"
