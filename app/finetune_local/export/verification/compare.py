"""Compares one receiver's view of an export with base + adapter: what it reads, where it stops, what it computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from finetune_local.export.engines.chats import Chat
from finetune_local.export.engines.process import Rendering
from finetune_local.export.verification.candidates import Candidate, Reference
from finetune_local.export.verification.expected import Expected
from finetune_local.system.errors import VerificationFailed
from finetune_local.system.messages import Message, msg

_AROUND = 24  # characters shown where two texts differ


@dataclass(frozen=True)
class Limits:
    """How far an export in one quantization type may differ from base + adapter.

    kl: the largest mean KL divergence, in nats per token. tie: a greedy token may differ if its reference logit is this close to the
    largest; None if greedy answers are not compared. advice: a sentence added to the error.
    """

    kl: float
    tie: float | None
    advice: str = ""


# Measured on SmolLM2-135M, which quantization hurts most, with a LoRA adapter (docs/export.md): correct exports stay far
# below each limit and wrong ones exceed it. Those of GGUF's own types are in export/gguf/quants.py.
F32, F16, BF16 = Limits(1e-3, 0.05), Limits(2e-3, 0.05), Limits(2e-2, 0.25)


@dataclass
class ReceiverCheck:
    """The result for one receiving program: passed; or None, not checked, with the reason.

    False: it differs for a reason no export can change, which `reason` states. A fault of the export itself is not a result but raises
    the verification's error.
    """

    name: str
    passed: bool | None = None
    reason: str = ""
    version: str = ""
    chats: int = 0
    stops: int = 0
    prompts: int = 0
    """Number of prompts whose answers were compared."""
    tokens: int = 0
    equal_texts: int = 0
    near_ties: list[str] = field(default_factory=list)
    kl_mean: float | None = None
    kl_max: float | None = None
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


def compare_reading(check: ReceiverCheck, candidate: Candidate, expected: Expected, chats: Sequence[Chat]) -> None:
    """Texts and chats as ids. Raises VerificationFailed."""
    for (text, special), ids in zip(expected.texts, candidate.text_ids(expected.texts), strict=True):
        if ids != (ours := expected.text_ids(text, special)):
            raise VerificationFailed(
                msg(
                    "token ids: {receiver}: the text {text}: {difference}",
                    receiver=check.name,
                    text=quoted(shortened(text)),
                    difference=parted(ours, ids),
                )
            )
    for chat, found in zip(chats, candidate.renderings(chats), strict=True):
        if difference := differing(expected, chat, found):
            raise VerificationFailed(
                msg(
                    "chat template: {receiver}: a chat with {title}: {difference}",
                    receiver=check.name,
                    title=quoted(chat.title),
                    difference=difference,
                )
            )
        check.chats += 1


def compare_stops(check: ReceiverCheck, candidate: Candidate, expected: Expected) -> None:
    """Force each of the app's end tokens on the receiver, and one token that ends nothing. Raises VerificationFailed."""
    tokenizer, probe = expected.tokenizer, expected.probes[0]
    if missing := candidate.continues_after(probe, expected.stop_ids):
        raise VerificationFailed(
            msg(
                "stop tokens: {receiver} does not stop at {token} (id {id}), where the app does.",
                receiver=check.name,
                token=quoted(tokenizer.text(missing[:1], special=True)),
                id=missing[0],
            )
        )
    more = sorted((candidate.ends() or frozenset()) - set(expected.stop_ids))
    if candidate.stops_at(probe, expected.plain_token):
        more = [expected.plain_token]
    if more:
        raise VerificationFailed(
            msg(
                "stop tokens: {receiver} stops at {token} (id {id}), where the app continues.",
                receiver=check.name,
                token=quoted(tokenizer.text(more[:1], special=True)),
                id=more[0],
            )
        )
    check.stops = len(expected.stop_ids)


def compare_answers(
    check: ReceiverCheck,
    candidate: Candidate,
    expected: Expected,
    references: Sequence[Reference],
    limits: Limits,
) -> None:
    """Greedy answers and the next token's distribution along them. Raises VerificationFailed."""
    divergences = []
    check.prompts = len(references)
    for number, reference in enumerate(references, 1):
        where = msg("prompt {number} ({title})", number=number, title=quoted(reference.probe.title))
        if difference := candidate.prompt(reference.probe):
            raise VerificationFailed(msg("prompt ids: {where}: {difference}", where=where, difference=difference))
        divergence, answered = candidate.follow(reference)
        divergences.append(divergence)
        if limits.tie is not None:
            compare_text(check, expected, reference, answered, where, limits.tie)
    joined = np.concatenate(divergences)
    check.tokens, check.kl_mean, check.kl_max = len(joined), float(joined.mean()), float(joined.max())
    if not check.kl_mean <= limits.kl:
        worst = int(np.argmax([d.mean() for d in divergences]))
        raise VerificationFailed(
            msg(
                "probabilities: {receiver}: the mean KL divergence from base + adapter is {kl} nats per token over "
                "{tokens} tokens, and {limit} is allowed; the worst is prompt {prompt} ({title}), token "
                "{token}.{advice}",
                receiver=check.name,
                kl=f"{check.kl_mean:.4g}",
                tokens=check.tokens,
                limit=f"{limits.kl:g}",
                prompt=worst + 1,
                title=quoted(references[worst].probe.title),
                token=int(divergences[worst].argmax()) + 1,
                advice=limits.advice,
            )
        )


def compare_text(
    check: ReceiverCheck,
    expected: Expected,
    reference: Reference,
    answered: Sequence[int],
    where: str,
    tolerance: float,
) -> None:
    """Compare greedy answers token by token up to the first difference."""
    answer, tokenizer = reference.answer, expected.tokenizer
    part = next((i for i, pair in enumerate(zip(answer, answered, strict=True)) if pair[0] != pair[1]), None)
    if part is None:
        check.equal_texts += 1
        return
    ours, theirs = answer[part], answered[part]
    margin = float(reference.logprobs[part, ours] - reference.logprobs[part, theirs])
    here, there = (quoted(tokenizer.text([token], special=True)) for token in (ours, theirs))
    words = msg("token {part}: {here} here, {there} in the export", part=part + 1, here=here, there=there)
    if margin > tolerance:
        raise VerificationFailed(
            msg(
                "greedy text: {name}: {where}, {words}; the reference's logits are {margin} apart, and {tolerance} "
                "would pass as a tie.",
                name=check.name,
                where=where,
                words=words,
                margin=f"{margin:.3g}",
                tolerance=f"{tolerance:g}",
            )
        )
    check.near_ties.append(
        msg(
            "{where}, {words}; the reference's logits are {margin} apart",
            where=where,
            words=words,
            margin=f"{margin:.2g}",
        )
    )


def differing(expected: Expected, chat: Chat, found: Rendering, **variables: bool) -> str:
    """How a receiver's rendering of a chat differs from the app's; "" if it does not.

    Rendered here at the time of the comparison, and once more if they differ, since a template may write the time.
    """
    for _ in range(2):
        ours = expected.rendering(chat, **variables)
        if found.ids == ours.ids:
            return ""
    if found.text is None:
        return msg("it rejects the chat, and the app writes {text}.", text=quoted(shortened(ours.text or "")))
    if ours.text is None:
        return msg("the app rejects the chat, and it writes {text}.", text=quoted(shortened(found.text)))
    if found.text != ours.text:
        at = next((i for i, pair in enumerate(zip(ours.text, found.text, strict=False)) if pair[0] != pair[1]), None)
        start = max(0, (min(len(ours.text), len(found.text)) if at is None else at) - _AROUND)
        here, there = (quoted(text[start : start + 2 * _AROUND]) for text in (ours.text, found.text))
        return msg("it writes {there}, where the app writes {here}.", there=there, here=here)
    return parted(ours.ids or (), found.ids or ())


def quoted(text: str) -> str:
    """A text quoted on one line."""
    return "“" + text.replace("\n", "\\n") + "”"


def shortened(text: str) -> str:
    """The start of a text."""
    return text if len(text) <= 2 * _AROUND else text[: 2 * _AROUND] + "…"


def parted(ours: Sequence[int], theirs: Sequence[int]) -> Message:
    """Where two lists of ids first differ, as a sentence."""
    part = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
    at = min(len(ours), len(theirs)) if part is None else part
    return msg(
        "it splits it into {own} tokens and the app into {count}; they differ from token {token} on.",
        own=len(theirs),
        count=len(ours),
        token=at + 1,
    )
