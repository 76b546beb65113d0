"""Token by token and many at once, on a toy whose logits are known."""

from pathlib import Path

import numpy as np
import pytest

from finetune_local.data.tokenizers.tokenizer import Tokenizer
from finetune_local.inference import generate as module
from finetune_local.inference.engine import RunningText
from finetune_local.inference.generate import answer, generate, greedy_batch
from finetune_local.inference.sampling import GREEDY, Sampling
from finetune_local.spec.batch import Floats
from finetune_local.system.errors import OutOfMemory, SpecError
from toy_session import ToySession


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Tokenizer:
    return Tokenizer.load(tiny)


def saying(ids: list[int], vocabulary: int, prompt: int) -> ToySession:
    """A toy that says `ids` after a prompt of that many ids."""

    def rule(_adapter: str | None, known: object) -> Floats:
        at = len(known) - prompt  # type: ignore[arg-type]
        logits = np.zeros(vocabulary, np.float32)
        logits[ids[min(at, len(ids) - 1)]] = 20.0
        return logits

    return ToySession(vocabulary, rule)


def test_the_answer_ends_before_a_stop_token_and_says_why() -> None:
    session = saying([5, 6, 7, 2, 8], 10, prompt=3)
    tokens = generate(session, [1, 1, 1], GREEDY, {2, 9})
    made = []
    with pytest.raises(StopIteration) as end:
        while True:
            made.append(next(tokens))
    assert made == [5, 6, 7]
    assert end.value.value == "stop"


@pytest.mark.parametrize(("most", "context", "length"), [(4, None, 4), (100, 8, 5), (4, 8, 4)])
def test_max_tokens_and_the_context_end_the_answer(
    tokenizer: Tokenizer, most: int, context: int | None, length: int
) -> None:
    session = saying([50] * 200, tokenizer.vocabulary_size, prompt=3)
    result = answer(session, tokenizer, [10, 11, 12], Sampling(temperature=0, max_tokens=most), context)
    assert (result.tokens, result.stop, result.prompt_tokens) == (length, "length", 3)


def test_a_prompt_that_fills_the_context_is_refused() -> None:
    with pytest.raises(SpecError, match=r"5 tokens.*context is 5"):
        next(generate(ToySession(10), [1] * 5, GREEDY, {2}, 5))
    with pytest.raises(SpecError, match="context is 5"):
        greedy_batch(ToySession(10), [[1], [1] * 5], 4, {2}, 5)


def test_text_streams_in_whole_characters_and_nothing_is_lost(tokenizer: Tokenizer) -> None:
    text = "Hello, 敏捷的狐狸跳过🦊 — done"
    ids = tokenizer.ids(text)
    assert len(ids) > len(text)  # the tiny vocabulary splits these characters
    session = saying([*ids, next(iter(tokenizer.stop_ids))], tokenizer.vocabulary_size, prompt=2)
    pieces: list[str] = []
    result = answer(session, tokenizer, [10, 11], Sampling(temperature=0), on_text=pieces.append)
    assert "".join(pieces) == result.text == text
    assert result.ids == tuple(ids)
    assert all("\ufffd" not in piece for piece in pieces)
    assert result.stop == "stop"


def test_an_interruption_keeps_what_was_said(tokenizer: Tokenizer) -> None:
    session = saying(tokenizer.ids("one two three four five"), tokenizer.vocabulary_size, prompt=1)
    said: list[str] = []
    result = answer(session, tokenizer, [9], GREEDY, on_text=said.append, interrupted=lambda: len(said) >= 3)
    assert result.stop == "interrupted"
    assert result.text == "".join(said)
    assert 3 <= result.tokens < 10


def test_many_at_once_say_what_each_says_alone() -> None:
    rng = np.random.default_rng(0)
    prompts = [[int(i) for i in rng.integers(3, 40, rng.integers(1, 30))] for _ in range(45)]
    session = ToySession(40)
    done: list[int] = []
    together = greedy_batch(session, prompts, 12, {2, 7}, progress=done.append)
    alone = [list(generate(session, p, Sampling(temperature=0, max_tokens=12), {2, 7})) for p in prompts]
    assert together == alone
    assert len({len(a) for a in alone}) > 2, "rows must finish at different times"
    assert done[-1] == 45 and done == sorted(done)
    assert greedy_batch(session, [], 12, {2}) == []


def test_rows_of_one_group_stay_inside_the_context() -> None:
    session = ToySession(40)
    prompts = [[3] * n for n in (2, 5, 14, 15, 19)]
    made = greedy_batch(session, prompts, 10, set(), context_length=20)
    assert [len(a) for a in made] == [10, 10, 6, 5, 1]


def test_a_group_that_does_not_fit_is_halved() -> None:
    prompts = [[3 + i] for i in range(11)]
    assert greedy_batch(ToySession(40, most_rows=2), prompts, 5, {2}) == greedy_batch(ToySession(40), prompts, 5, {2})
    with pytest.raises(OutOfMemory):
        greedy_batch(ToySession(40, most_rows=0), prompts, 5, {2})


def test_groups_hold_prompts_of_similar_length_in_bounds() -> None:
    prompts = [[1] * n for n in [5000, 3, 4, 5, *[600] * 40]]
    groups = module._groups(prompts, [10] * len(prompts), None)
    assert sorted(i for group in groups for i in group) == list(range(len(prompts)))
    for group in groups:
        longest = max(len(prompts[i]) for i in group)
        assert len(group) == 1 or (len(group) <= 16 and len(group) * longest <= module.BATCH_TOKENS)


def test_a_second_turn_feeds_only_what_is_new() -> None:
    session, running = ToySession(40), RunningText()
    first = list(generate(session, [3, 4, 5], Sampling(temperature=0, max_tokens=4), set(), running=running))
    session.fed.clear()
    prompt = [3, 4, 5, *first, 6, 7]
    second = list(generate(session, prompt, Sampling(temperature=0, max_tokens=4), set(), running=running))
    assert session.decoders == 1
    assert session.fed[0] == 3  # the last answer's last token was never fed, and two new ones
    assert second == list(generate(ToySession(40), prompt, Sampling(temperature=0, max_tokens=4), set()))


def test_a_changed_text_or_a_failed_feed_begins_anew() -> None:
    session, running = ToySession(40), RunningText()
    running.logits(session, [3, 4, 5])
    running.logits(session, [3, 9, 5, 6])
    assert session.decoders == 2
    session.most_rows = 0
    with pytest.raises(OutOfMemory):
        running.logits(session, [3, 9, 5, 6, 7])
    session.most_rows = 1
    again = running.logits(session, [3, 9, 5, 6, 7])
    assert session.decoders == 3
    assert np.array_equal(again, session.rule(None, [3, 9, 5, 6, 7]))
