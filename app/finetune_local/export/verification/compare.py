"""One receiver's view of an export held against base + adapter: what it reads, where it stops, what it computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from finetune_local.export.engines.chats import Chat
from finetune_local.export.engines.process import Rendering
from finetune_local.export.verification.candidates import Candidate, Reference
from finetune_local.export.verification.expected import Expected
from finetune_local.system.errors import GateFailed

_AROUND = 24  # characters shown where two texts part


@dataclass(frozen=True)
class Limits:
    """How far an export in one quantization type may differ from base + adapter.

    kl: the mean KL divergence, in nats per token. tie: two tokens whose reference logits are closer than this may change
    places; None where greedy answers may differ anyway. advice: what to say where the limit is exceeded.
    """

    kl: float
    tie: float | None
    advice: str = ""


# Measured on SmolLM2-135M, which quantization hurts most, with a LoRA adapter (docs/export.md): what is written correctly stays
# far below each limit, and what is written wrongly is beyond. Those of GGUF's own types are in export/gguf/quants.py.
F32, F16, BF16 = Limits(1e-3, 0.05), Limits(2e-3, 0.05), Limits(2e-2, 0.25)


@dataclass
class ReceiverCheck:
    """What one program that opens the export was seen to do: passed, or None, not checked, with the reason.

    False is what it does otherwise for reasons of its own, which no export can mend; the reason tells. An export that it could
    have read rightly and did not is no result: that raises GateFailed.
    """

    name: str
    passed: bool | None = None
    reason: str = ""
    version: str = ""
    chats: int = 0
    stops: int = 0
    prompts: int = 0
    """How many prompts' answers were compared."""
    tokens: int = 0
    equal_texts: int = 0
    near_ties: list[str] = field(default_factory=list)
    kl_mean: float | None = None
    kl_max: float | None = None
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


def compare_reading(check: ReceiverCheck, candidate: Candidate, expected: Expected, chats: Sequence[Chat]) -> None:
    """Texts and chats as ids. Raises GateFailed."""
    for (text, special), ids in zip(expected.texts, candidate.text_ids(expected.texts), strict=True):
        if ids != (wanted := expected.text_ids(text, special)):
            raise GateFailed(f"token ids: {check.name}: the text {quoted(shortened(text))}: {parted(wanted, ids)}")
    for chat, found in zip(chats, candidate.renderings(chats), strict=True):
        if difference := differing(expected, chat, found):
            raise GateFailed(f"chat template: {check.name}: a chat with {quoted(chat.title)}: {difference}")
        check.chats += 1


def compare_stops(check: ReceiverCheck, candidate: Candidate, expected: Expected) -> None:
    """Each end of the app's is forced on it, and one token that ends nothing. Raises GateFailed."""
    tokenizer, probe = expected.tokenizer, expected.probes[0]
    if missing := candidate.goes_on_at(probe, expected.stop_ids):
        raise GateFailed(
            f"stop tokens: {check.name} does not stop at {quoted(tokenizer.text(missing[:1], special=True))} (id {missing[0]}), "
            "where the app does."
        )
    more = sorted((candidate.ends() or frozenset()) - set(expected.stop_ids))
    if candidate.ends_at(probe, expected.plain_token):
        more = [expected.plain_token]
    if more:
        raise GateFailed(
            f"stop tokens: {check.name} stops at {quoted(tokenizer.text(more[:1], special=True))} (id {more[0]}), where the app "
            "goes on."
        )
    check.stops = len(expected.stop_ids)


def compare_answers(
    check: ReceiverCheck,
    candidate: Candidate,
    expected: Expected,
    references: Sequence[Reference],
    limits: Limits,
) -> None:
    """Greedy answers and the next token's distribution along them. Raises GateFailed."""
    divergences = []
    check.prompts = len(references)
    for number, reference in enumerate(references, 1):
        where = f"prompt {number} ({quoted(reference.probe.title)})"
        if difference := candidate.prompt(reference.probe):
            raise GateFailed(f"prompt ids: {where}: {difference}")
        divergence, given = candidate.follow(reference)
        divergences.append(divergence)
        if limits.tie is not None:
            compare_text(check, expected, reference, given, where, limits.tie)
    joined = np.concatenate(divergences)
    check.tokens, check.kl_mean, check.kl_max = len(joined), float(joined.mean()), float(joined.max())
    if not check.kl_mean <= limits.kl:
        worst = int(np.argmax([d.mean() for d in divergences]))
        raise GateFailed(
            f"probabilities: {check.name}: the mean KL divergence from base + adapter is {check.kl_mean:.4g} nats per token over "
            f"{check.tokens} tokens, and {limits.kl:g} is allowed; the worst is prompt {worst + 1} "
            f"({quoted(references[worst].probe.title)}), token {int(divergences[worst].argmax()) + 1}.{limits.advice}"
        )


def compare_text(
    check: ReceiverCheck,
    expected: Expected,
    reference: Reference,
    given: Sequence[int],
    where: str,
    tolerance: float,
) -> None:
    """Greedy answers are equal where the likeliest token is, after each equal beginning; past a parting nothing is."""
    answer, tokenizer = reference.answer, expected.tokenizer
    part = next((i for i, pair in enumerate(zip(answer, given, strict=True)) if pair[0] != pair[1]), None)
    if part is None:
        check.equal_texts += 1
        return
    ours, theirs = answer[part], given[part]
    margin = float(reference.logprobs[part, ours] - reference.logprobs[part, theirs])
    here, there = (quoted(tokenizer.text([token], special=True)) for token in (ours, theirs))
    words = f"token {part + 1}: {here} here, {there} in the export"
    if margin > tolerance:
        raise GateFailed(
            f"greedy text: {check.name}: {where}, {words}; the reference's logits are {margin:.3g} apart, and {tolerance:g} would "
            "pass as a tie."
        )
    check.near_ties.append(f"{where}, {words}; the reference's logits are {margin:.2g} apart")


def differing(expected: Expected, chat: Chat, found: Rendering, **variables: bool) -> str:
    """How a chat that a receiver rendered differs from the app's, "" where it does not.

    Rendered here only now, and once more where they differ: a template may write the time.
    """
    for _ in range(2):
        wanted = expected.rendering(chat, **variables)
        if found.ids == wanted.ids:
            return ""
    if found.text is None:
        return f"it refuses it, and the app writes {quoted(shortened(wanted.text or ''))}."
    if wanted.text is None:
        return f"the app refuses it, and it writes {quoted(shortened(found.text))}."
    if found.text != wanted.text:
        at = next((i for i, pair in enumerate(zip(wanted.text, found.text, strict=False)) if pair[0] != pair[1]), None)
        start = max(0, (min(len(wanted.text), len(found.text)) if at is None else at) - _AROUND)
        here, there = (quoted(text[start : start + 2 * _AROUND]) for text in (wanted.text, found.text))
        return f"it writes {there}, where the app writes {here}."
    return parted(wanted.ids or (), found.ids or ())


def quoted(text: str) -> str:
    """A text in a sentence, on one line."""
    return "“" + text.replace("\n", "\\n") + "”"


def shortened(text: str) -> str:
    """The beginning of a text."""
    return text if len(text) <= 2 * _AROUND else text[: 2 * _AROUND] + "…"


def parted(ours: Sequence[int], theirs: Sequence[int]) -> str:
    """Where two lists of ids part, as a sentence."""
    part = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
    at = min(len(ours), len(theirs)) if part is None else part
    return f"it makes {len(theirs)} tokens of it and the app {len(ours)}; they part at token {at + 1}."
