"""Generate answers: one as a stream of tokens, or many greedy ones in a batch for evaluation and samples.

If the active adapter is a prompt ensemble, all members answer in one batch and the most frequent answer wins (Lester et al. 2021,
arXiv:2104.08691, section 6); in a tie, that of the lowest member. It is available only when all members have finished.
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
BATCH_TOKENS = 8192  # prompt tokens fed at once, padding included


@dataclass(frozen=True)
class GenerationResult:
    """One answer. `stop`: the model ended it ("stop"), a limit was reached ("length"), or the user interrupted it.

    `first_seconds`: time to the first token, including the prefill.
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
    """Yield the answer's ids, without the stop token; returns the stop reason.

    For a prompt ensemble it is the first member's answer. `context_length` limits the sum of virtual tokens, prompt and answer.
    `running` keeps the key/value cache between turns of a chat. Raises SpecError if the prompt alone fills the context.
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
    """Generate a whole answer. `on_tokens` receives the number of tokens so far, then `on_text` the new characters.

    `interrupted` is called after each token. A prompt ensemble's answer arrives as a whole, after the vote; an interrupted vote
    counts the partial answers. Raises SpecError if the prompt alone fills the context, OutOfMemory.
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
    """Ids of the greedy answer to each prompt, in the order of the prompts, without stop tokens.

    Prompts of similar length share a decoder of up to 16 rows; the group is halved if memory runs out. `progress` receives the number
    of finished prompts. Two answers of a prompt ensemble are equal if `reading` maps their ids to the same value; by default their
    ids have to be equal, although one text can have several tokenizations.
    Raises OutOfMemory if even one prompt does not fit, SpecError if one fills the context.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    ensemble_size, context = session.ensemble_size, _context(session, context_length)
    rooms = [min(max_tokens, _room(session, len(p), context_length)) for p in prompts]
    waiting, done = _groups(prompts, rooms, context, ensemble_size), 0
    while waiting:
        group = waiting.pop()
        rows = [i for i in group for _ in range(ensemble_size)]  # row r is computed by member r % ensemble_size
        try:
            generated, _ = _together(
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
            answers[i] = _winner(generated[number * ensemble_size : (number + 1) * ensemble_size], reading)
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
    """The members' most frequent answer and its stop reason; each member draws its own random numbers."""
    ensemble_size, prompt = session.ensemble_size, list(prompt_ids)
    room = min(sampling.max_tokens, _room(session, len(prompt), context_length))
    generators = sampling.generator().spawn(ensemble_size)

    def pick(row: int, logits: Floats, answer: Sequence[int]) -> int:
        return choose(logits, [*prompt, *answer], sampling, generators[row])

    answers, reasons = _together(
        session, [prompt] * ensemble_size, [room] * ensemble_size, tokenizer.stop_ids, pick, interrupted
    )
    winner = _winner(answers, tokenizer.text)
    return winner, "interrupted" if "interrupted" in reasons else reasons[answers.index(winner)]


def _winner(answers: Sequence[list[int]], reading: Callable[[Sequence[int]], Hashable]) -> list[int]:
    """The most frequent answer; in a tie the first."""
    read = [reading(answer) for answer in answers]
    ((most, _),) = Counter(read).most_common(1)  # in a tie the first
    return answers[read.index(most)]


def _together(
    session: Session,
    rows: Sequence[Sequence[int]],
    rooms: Sequence[int],
    stop_ids: Collection[int],
    pick: Callable[[int, Floats, Sequence[int]], int],
    interrupted: Callable[[], bool] = lambda: False,
) -> tuple[list[list[int]], list[StopReason]]:
    """Answers to all rows from one decoder, and their stop reasons. `pick` maps row, logits and the answer so far to the next id."""
    decoder = session.decoder()
    answers: list[list[int]] = [[] for _ in rows]
    reasons: list[StopReason] = ["interrupted" for _ in rows]
    open_rows = set(range(len(rows)))
    fed: Sequence[Sequence[int]] = rows
    while open_rows and not interrupted():
        logits = decoder.feed(fed)
        fed = [[0] for _ in rows]  # finished rows are fed too, because rows advance together
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
    """Indices of prompts in groups of similar length. The group with the longest prompts is last: it runs first, so that a lack of
    memory shows early.

    All rows of a group grow together, so a prompt does not join shorter ones whose answers it would cut off at the context's end.
    Each prompt takes `ensemble_size` rows.
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
    """The most tokens of an answer that fit into the context. Raises SpecError if the prompt fills it."""
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
