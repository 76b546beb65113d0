"""The same prompt to the base and to every adapter in memory, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from finetune_local.chat.generate import GenerationResult, answer
from finetune_local.chat.opening import Opened
from finetune_local.chat.sampling import Sampling


def compare(
    opened: Opened,
    prompt_ids: Sequence[int],
    sampling: Sampling,
    on_text: Callable[[str | None, str], None] = lambda _name, _text: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> dict[str | None, GenerationResult]:
    """Answers by the adapter's name, the base's first under None. With a seed all draw the same random numbers.

    `on_text` gets name and text as it comes. The adapter that was active before is so again afterwards. After an
    interruption the rest is left out.
    """
    before = opened.active
    answers: dict[str | None, GenerationResult] = {}
    try:
        for name in (None, *opened.adapters):
            opened.activate(name)
            answers[name] = answer(
                opened.session,
                opened.tokenizer,
                prompt_ids,
                sampling,
                opened.model.context_length,
                on_text=partial(on_text, name),
                interrupted=interrupted,
            )
            if interrupted():
                break
    finally:
        opened.activate(before)
    return answers
