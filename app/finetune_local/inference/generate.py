"""Generating answers: token by token as they are read, or many greedy ones in a batch for evaluation and samples.

Where the active adapter is a prompt ensemble, every member answers, all in one batch, and the most frequent answer is taken
(Lester et al. 2021, arXiv:2104.08691, section 6); of equally frequent ones that of the lowest member. It is shown
once all have ended, as the vote is not known before.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from finetune_local.backend import Session
from finetune_local.inference.engine import RunningText
from finetune_local.inference.sampling import Sampling, choose
from finetune_local.spec.batch import Floats
from finetune_local.system.errors import OutOfMemory, SpecError
from finetune_local.system.messages import msg

if TYPE_CHECKING:
    from finetune_local.data.tokenizers.tokenizer import Tokenizer

StopReason = Literal["stop", "length", "interrupted"]

BATCH_ROWS = 16
BATCH_TOKENS = 8192  # prompt tokens (with padding) that are fed at once


@dataclass(frozen=True)
class GenerationResult:
    """One answer. `stop`: the model ended it, the length or the context ran out, or the user interrupted it.

    `first_seconds`: until its first token, for which the prompt is read.
    """

    text: str
    ids: tuple[int, ...]
    prompt_tokens: int
    tokens: int
    seconds: float
    stop: StopReason
    first_seconds: float = 0.0


def generate(
    session: Session,
    prompt_ids: Sequence[int],
    sampling: Sampling,
    stop_ids: Collection[int],
    context_length: int | None = None,
    running: RunningText | None = None,
) -> Generator[int, None, StopReason]:
    """Yield the answer's ids one by one, without the stop token. The return value is the stop reason.

    For a prompt ensemble it is the first member's answer. `context_length` bounds prompt and answer together, and what the
    adapter takes of it. `running` keeps the key/value cache between the turns of a chat. Raises SpecError where the prompt
    alone fills the context.
    """
    room = min(sampling.max_tokens, _room(session, len(prompt_ids), context_length))
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
    on_tokens: Callable[[int], None] = lambda _: None,
    interrupted: Callable[[], bool] = lambda: False,
    running: RunningText | None = None,
) -> GenerationResult:
    """Generate to the end. `on_text` gets whole characters as they come, `on_tokens` before them the number of tokens so far;
    `interrupted` is called after each token.

    A prompt ensemble's answer comes as a whole, after the vote; an interrupted vote counts the answers so far.
    """
    started = time.perf_counter()
    if session.ensemble_size > 1:
        voted, why = _by_vote(session, tokenizer, prompt_ids, sampling, context_length, interrupted)
        text = tokenizer.text(voted)
        if text:
            on_text(text)
        seconds = time.perf_counter() - started
        return GenerationResult(text, tuple(voted), len(prompt_ids), len(voted), seconds, why, seconds)
    first = 0.0
    streamer, ids, pieces = tokenizer.streamer(), list[int](), list[str]()
    tokens = generate(session, prompt_ids, sampling, tokenizer.stop_ids, context_length, running)
    reason: StopReason = "interrupted"
    while not interrupted():
        try:
            ids.append(next(tokens))
        except StopIteration as end:
            reason = end.value
            break
        first = first or time.perf_counter() - started
        on_tokens(len(ids))
        pieces.append(streamer.push(ids[-1]))
        if pieces[-1]:
            on_text(pieces[-1])
    pieces.append(streamer.finish())
    if pieces[-1]:
        on_text(pieces[-1])
    seconds = time.perf_counter() - started
    return GenerationResult("".join(pieces), tuple(ids), len(prompt_ids), len(ids), seconds, reason, first)


def greedy_batch(
    session: Session,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    stop_ids: Collection[int],
    context_length: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
    reading: Callable[[Sequence[int]], Hashable] = tuple,
) -> list[list[int]]:
    """The likeliest answer to each prompt, in the prompts' order, without stop tokens.

    Prompts of similar length share a decoder of up to 16 rows; where memory is short the group is halved. `progress` is
    told how many are done. `reading` is what two answers of a prompt ensemble must share to count as the same: without it
    their ids, which differ where one text is cut into tokens in two ways.
    Raises OutOfMemory where even one prompt does not fit, SpecError where one fills the context.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    ensemble_size, context = session.ensemble_size, _context(session, context_length)
    rooms = [min(max_tokens, _room(session, len(p), context_length)) for p in prompts]
    waiting, done = _groups(prompts, rooms, context, ensemble_size), 0
    while waiting:
        group = waiting.pop()
        rows = [i for i in group for _ in range(ensemble_size)]  # row r is under member r % members
        try:
            said, _ = _together(
                session,
                [prompts[i] for i in rows],
                [rooms[i] for i in rows],
                stop_ids,
                lambda _row, logits, _: _best(logits),
            )
        except OutOfMemory:
            if len(group) == 1:
                raise
            waiting += [group[: len(group) // 2], group[len(group) // 2 :]]
            continue
        for number, i in enumerate(group):
            answers[i] = _winner(said[number * ensemble_size : (number + 1) * ensemble_size], reading)
        done += len(group)
        progress(done)
    return answers


def _by_vote(
    session: Session,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[int],
    sampling: Sampling,
    context_length: int | None,
    interrupted: Callable[[], bool],
) -> tuple[list[int], StopReason]:
    """The most frequent answer of the members, each with its own random numbers, and its stop reason."""
    ensemble_size, asked = session.ensemble_size, list(prompt_ids)
    room = min(sampling.max_tokens, _room(session, len(asked), context_length))
    drawn = sampling.generator().spawn(ensemble_size)

    def pick(row: int, logits: Floats, said: Sequence[int]) -> int:
        return choose(logits, [*asked, *said], sampling, drawn[row])

    said, reasons = _together(
        session, [asked] * ensemble_size, [room] * ensemble_size, tokenizer.stop_ids, pick, interrupted
    )
    winner = _winner(said, tokenizer.text)
    return winner, "interrupted" if "interrupted" in reasons else reasons[said.index(winner)]


def _winner(answers: Sequence[list[int]], reading: Callable[[Sequence[int]], Hashable]) -> list[int]:
    """The most frequent answer; the first of equally frequent ones."""
    read = [reading(answer) for answer in answers]
    ((most, _),) = Counter(read).most_common(1)  # the first of equally frequent ones
    return answers[read.index(most)]


def _together(
    session: Session,
    rows: Sequence[Sequence[int]],
    rooms: Sequence[int],
    stop_ids: Collection[int],
    pick: Callable[[int, Floats, Sequence[int]], int],
    interrupted: Callable[[], bool] = lambda: False,
) -> tuple[list[list[int]], list[StopReason]]:
    """Answers to all rows from one decoder, with their stop reasons. `pick` takes row, logits and the answer so far."""
    decoder = session.decoder()
    answers: list[list[int]] = [[] for _ in rows]
    reasons: list[StopReason] = ["interrupted" for _ in rows]
    open_rows = set(range(len(rows)))
    fed: Sequence[Sequence[int]] = rows
    while open_rows and not interrupted():
        logits = decoder.feed(fed)
        fed = [[0] for _ in rows]  # a finished row is fed too, as rows stay in step
        for row in sorted(open_rows):
            token = pick(row, logits[row], answers[row])
            if token in stop_ids:
                reasons[row] = "stop"
                open_rows.discard(row)
                continue
            fed[row] = [token]
            answers[row].append(token)
            if len(answers[row]) >= rooms[row]:
                reasons[row] = "length"
                open_rows.discard(row)
    return answers, reasons


def _best(logits: Floats) -> int:
    return int(logits.argmax())


def _groups(
    prompts: Sequence[Sequence[int]], rooms: Sequence[int], context_length: int | None, ensemble_size: int = 1
) -> list[list[int]]:
    """Indices of prompts in groups of similar length; the longest is last, as it runs first and shows a lack of memory.

    As all rows of a group grow together, none is joined by a longer one that the context ends before its own answer may.
    Each prompt stands in `ensemble_size` rows.
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i)):
        group, length = (groups[-1] if groups else []), len(prompts[i])
        rows = (len(group) + 1) * ensemble_size
        full = rows > BATCH_ROWS or rows * length > BATCH_TOKENS
        too_long = context_length is not None and any(length + rooms[j] > context_length for j in group)
        if not group or full or too_long:
            groups.append([i])
        else:
            group.append(i)
    return groups


def _context(session: Session, context_length: int | None) -> int | None:
    """The context length without the active adapter's virtual tokens."""
    return None if context_length is None else context_length - session.virtual_tokens


def _room(session: Session, prompt_tokens: int, context_length: int | None) -> int:
    """The longest answer that the context has room for. Raises SpecError where there is none."""
    context = _context(session, context_length)
    if context is None:
        return sys.maxsize
    if context <= prompt_tokens:
        taken = (
            msg(", of which this adapter uses {virtual_tokens}", virtual_tokens=session.virtual_tokens)
            if session.virtual_tokens
            else ""
        )
        raise SpecError(
            msg(
                "the prompt has {tokens} tokens, but the model's context is {context_length}{taken}: shorten the "
                "prompt.",
                tokens=prompt_tokens,
                context_length=context_length,
                taken=taken,
            )
        )
    return context - prompt_tokens
