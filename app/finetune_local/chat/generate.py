"""Answers from a session: token by token for a reader, or many greedy ones at once for evaluation and samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from finetune_local.backend import Session
from finetune_local.chat.sampling import Sampling, choose
from finetune_local.chat.text import RunningText
from finetune_local.errors import OutOfMemory, SpecError

if TYPE_CHECKING:
    from finetune_local.data.tokenizer import Tokenizer

StopReason = Literal["stop", "length", "interrupted"]

BATCH_ROWS = 16
BATCH_TOKENS = 8192  # prompt tokens (with padding) that are fed at once


@dataclass(frozen=True)
class GenerationResult:
    """One answer. `stop`: the model ended it, the length or the context ran out, or the user interrupted it."""

    text: str
    ids: tuple[int, ...]
    prompt_tokens: int
    tokens: int
    seconds: float
    stop: StopReason


def generate(
    session: Session,
    prompt_ids: Sequence[int],
    sampling: Sampling,
    stop_ids: Collection[int],
    context_length: int | None = None,
    running: RunningText | None = None,
) -> Generator[int, None, StopReason]:
    """Yield the answer's ids one by one; the stop token is not among them. The return value says why it ended.

    `context_length` bounds prompt and answer together. `running` keeps the key/value cache between the turns of a chat.
    Raises SpecError where the prompt alone fills the context.
    """
    room = sampling.max_tokens
    if context_length is not None:
        room = min(room, _room(len(prompt_ids), context_length))
    text, rng, history = running or RunningText(), sampling.generator(), list(prompt_ids)
    for _ in range(room):
        token = choose(text.logits(session, history), history, sampling, rng)
        if token in stop_ids:
            return "stop"
        history.append(token)
        yield token
    return "length"


def answer(
    session: Session,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[int],
    sampling: Sampling,
    context_length: int | None = None,
    *,
    on_text: Callable[[str], None] = lambda _: None,
    interrupted: Callable[[], bool] = lambda: False,
    running: RunningText | None = None,
) -> GenerationResult:
    """Generate to the end. `on_text` gets whole characters as they come; `interrupted` is asked after each token."""
    started = time.perf_counter()
    streamer, ids, pieces = tokenizer.streamer(), list[int](), list[str]()
    tokens = generate(session, prompt_ids, sampling, tokenizer.stop_ids, context_length, running)
    reason: StopReason = "interrupted"
    while not interrupted():
        try:
            ids.append(next(tokens))
        except StopIteration as end:
            reason = end.value
            break
        pieces.append(streamer.push(ids[-1]))
        if pieces[-1]:
            on_text(pieces[-1])
    pieces.append(streamer.finish())
    if pieces[-1]:
        on_text(pieces[-1])
    seconds = time.perf_counter() - started
    return GenerationResult("".join(pieces), tuple(ids), len(prompt_ids), len(ids), seconds, reason)


def greedy_batch(
    session: Session,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    stop_ids: Collection[int],
    context_length: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> list[list[int]]:
    """The likeliest answer to each prompt, in the prompts' order, without stop tokens.

    Prompts of similar length share a decoder of up to 16 rows; where memory is short the group is halved. `progress` is
    told how many are done. Raises OutOfMemory where even one row does not fit, SpecError where a prompt fills the context.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    rooms = [min(max_tokens, _room(len(p), context_length)) if context_length else max_tokens for p in prompts]
    waiting, done = _groups(prompts, rooms, context_length), 0
    while waiting:
        group = waiting.pop()
        try:
            texts = _greedy(session, [prompts[i] for i in group], [rooms[i] for i in group], stop_ids)
        except OutOfMemory:
            if len(group) == 1:
                raise
            waiting += [group[: len(group) // 2], group[len(group) // 2 :]]
            continue
        for i, ids in zip(group, texts, strict=True):
            answers[i] = ids
        done += len(group)
        progress(done)
    return answers


def _greedy(
    session: Session, prompts: Sequence[Sequence[int]], rooms: Sequence[int], stop_ids: Collection[int]
) -> list[list[int]]:
    decoder = session.decoder()
    answers: list[list[int]] = [[] for _ in prompts]
    open_rows = set(range(len(prompts)))
    fed: Sequence[Sequence[int]] = prompts
    while True:
        tokens = [int(token) for token in decoder.feed(fed).argmax(axis=-1)]
        for row in sorted(open_rows):
            if tokens[row] in stop_ids:
                open_rows.discard(row)
                continue
            answers[row].append(tokens[row])
            if len(answers[row]) >= rooms[row]:
                open_rows.discard(row)
        if not open_rows:
            return answers
        fed = [[token] for token in tokens]  # a finished row is fed too, as rows stay in step; what it says is not kept


def _groups(prompts: Sequence[Sequence[int]], rooms: Sequence[int], context_length: int | None) -> list[list[int]]:
    """Indices of prompts in groups of similar length, the longest last so that it runs first and a lack of memory shows.

    As all rows of a group grow together, none is joined by a longer one that the context ends before its own answer may.
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i)):
        group, length = (groups[-1] if groups else []), len(prompts[i])
        full = len(group) >= BATCH_ROWS or (len(group) + 1) * length > BATCH_TOKENS
        too_long = context_length is not None and any(length + rooms[j] > context_length for j in group)
        if not group or full or too_long:
            groups.append([i])
        else:
            group.append(i)
    return groups


def _room(prompt_tokens: int, context_length: int) -> int:
    room = context_length - prompt_tokens
    if room < 1:
        raise SpecError(
            f"the prompt has {prompt_tokens} tokens, but the model's context is {context_length}: shorten the prompt."
        )
    return room
