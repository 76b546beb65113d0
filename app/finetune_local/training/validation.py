"""Validation: the objective's metrics on held-out examples, and sampled answers to held-out prompts."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from finetune_local.backend import Session
from finetune_local.data.conversation import RowRejected
from finetune_local.data.dataset.batching import Examples, Indices, batches_for_scoring
from finetune_local.data.encoding.encode import prompt_ids
from finetune_local.spec.batch import Batch, Readout
from finetune_local.spec.objectives import Mean, Objective
from finetune_local.system.errors import OutOfMemory
from finetune_local.system.messages import msg
from finetune_local.training.events import Event, Note, Sample
from finetune_local.training.steps import Stepper

if TYPE_CHECKING:
    from finetune_local.training.setup import Ready


def validation_examples(count: int, most: int, seed: int) -> Indices:
    """Indices of at most `most` of `count` examples: a seeded random subset, because a file may be sorted."""
    shuffled = np.random.default_rng(seed).permutation(count)
    return np.sort(shuffled[:most])


def metrics(
    session: Session, objective: Objective, examples: Examples, indices: Indices, stepper: Stepper
) -> Generator[Event, None, dict[str, float]]:
    """The objective's metrics over the examples under the active adapter. Raises OutOfMemory if not even one example fits."""
    while True:
        sums: dict[str, Mean] = {}
        batch: Batch | None = None
        try:
            for _, batch in batches_for_scoring(examples, indices, stepper.max_tokens):
                _add(sums, _measured(session, objective, batch))
            return {name: mean.value for name, mean in sums.items()}
        except OutOfMemory:
            if batch is None or batch.examples == 1:
                raise
            yield stepper.halve([batch])


def _measured(session: Session, objective: Objective, batch: Batch) -> Mapping[str, Mean]:
    if "reference" in objective.needs and batch.reference is None:
        batch = replace(batch, reference=session.score(batch, reference=True))
    values = None if objective.value_kind is None else session.values(batch, objective.value_kind)
    return objective.metrics(Readout(session.score(batch), values), batch)


def _add(sums: dict[str, Mean], found: Mapping[str, Mean]) -> None:
    for name, mean in found.items():
        sums[name] = sums.get(name, Mean(0.0, 0.0)) + mean


def samples(ready: Ready, step: int) -> Iterator[Event]:
    """Greedy answers to held-out prompts. A prompt that cannot be rendered alone is skipped rather than ending the run."""
    from finetune_local.inference.generate import greedy_batch

    conversations, prompts = [], []
    length = ready.model.context_length
    for conversation in ready.samples:
        if len(conversation.messages) < 2 or conversation.messages[-1].role != "assistant":
            continue
        with suppress(RowRejected):  # some templates refuse a conversation without its last answer
            ids = prompt_ids(conversation.messages[:-1], ready.tokenizer, ready.spec.data.template)
            if 0 < len(ids) < length - ready.session.virtual_tokens:
                conversations.append(conversation)
                prompts.append(ids)
    if not prompts:
        return
    most, stops = ready.spec.training.sample_tokens, ready.tokenizer.stop_ids
    try:
        answers = greedy_batch(ready.session, prompts, most, stops, length)
    except OutOfMemory as error:
        yield Note(text=msg("no sampled answers this time: {error}", error=error))
        return
    for conversation, answer in zip(conversations, answers, strict=True):
        yield Sample(
            step=step,
            prompt=conversation.messages[-2].content,
            answer=ready.tokenizer.text(answer),
            reference=conversation.messages[-1].content,
        )
