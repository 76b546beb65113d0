"""An export as the verification sees it: a receiver's reply about a folder, or a GGUF file in llama.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from finetune_local.export.engines.chats import Chat
from finetune_local.export.engines.llama import LlamaCpp
from finetune_local.export.engines.process import ReceiverReply, Rendering
from finetune_local.export.verification.expected import Probe
from finetune_local.system.messages import Message, msg

Floats = npt.NDArray[np.float32]
TOP = 512
"""llama.cpp reports only the likeliest tokens; the KL is taken over these and one bucket for all others (a lower bound)."""


@dataclass(frozen=True)
class Reference:
    """One prompt with the reference's greedy answer and log-probabilities.

    answer (n,): its last token is a stop token, or the next token at the length limit; logprobs (n, vocabulary).
    """

    probe: Probe
    answer: tuple[int, ...]
    logprobs: Floats


class Candidate(Protocol):
    """An export opened by a receiver."""

    def renderings(self, chats: Sequence[Chat]) -> Sequence[Rendering]:
        """Chats as the receiver renders them."""
        ...

    def text_ids(self, texts: Sequence[tuple[str, bool]]) -> Sequence[tuple[int, ...]]:
        """Texts as ids; the flag says whether the tokenizer adds its special tokens."""
        ...

    def prompt(self, probe: Probe) -> str | None:
        """None if the receiver tokenizes the prompt as the app does, else a sentence."""
        ...

    def continues_after(self, probe: Probe, stop_ids: Sequence[int]) -> list[int]:
        """The app's stop tokens after which the receiver continues, each forced on it."""
        ...

    def ends(self) -> frozenset[int] | None:
        """All end tokens the receiver reports; None if it reports none."""
        ...

    def stops_at(self, probe: Probe, token: int) -> bool:
        """Whether it stops at a token that does not end an answer in the app."""
        ...

    def follow(self, reference: Reference) -> tuple[Floats, list[int]]:
        """Along the reference's answer: KL(reference ‖ export), (n,), in nats, and the export's likeliest tokens (n,)."""
        ...


class FolderCandidate:
    """A folder, judged by a receiver's reply."""

    def __init__(
        self, reply: ReceiverReply, chats: Sequence[Chat], texts: Sequence[tuple[str, bool]], probes: Sequence[Probe]
    ) -> None:
        self._reply = reply
        self._chats = {id(chat): rendering for chat, rendering in zip(chats, reply.chats, strict=True)}
        self._texts = dict(zip(texts, reply.texts, strict=True))
        self._logits = {id(probe): logits for probe, logits in zip(probes, reply.logits, strict=True)}

    def renderings(self, chats: Sequence[Chat]) -> Sequence[Rendering]:
        """See Candidate."""
        return [self._chats[id(chat)] for chat in chats]

    def text_ids(self, texts: Sequence[tuple[str, bool]]) -> Sequence[tuple[int, ...]]:
        """See Candidate."""
        return [self._texts[text] for text in texts]

    def prompt(self, probe: Probe) -> str | None:
        """See Candidate: the probes are among the chats and texts."""
        return None

    def continues_after(self, probe: Probe, stop_ids: Sequence[int]) -> list[int]:
        """See Candidate."""
        return [token for token, length in zip(stop_ids, self._reply.lengths, strict=True) if length != 1]

    def ends(self) -> frozenset[int] | None:
        """See Candidate."""
        return self._reply.ends

    def stops_at(self, probe: Probe, token: int) -> bool:
        """See Candidate."""
        return not self._reply.continues

    def follow(self, reference: Reference) -> tuple[Floats, list[int]]:
        """See Candidate."""
        own = log_softmax(self._logits[id(reference.probe)])
        width = min(own.shape[-1], reference.logprobs.shape[-1])  # rows past the vocabulary may be missing
        p, own = reference.logprobs[:, :width], own[:, :width]
        kl = np.maximum((np.exp(p) * (p - own)).sum(axis=-1), 0.0)  # rounding may make it slightly negative
        return np.asarray(kl, np.float32), [int(i) for i in own.argmax(axis=-1)]


class GgufCandidate:
    """A GGUF file in llama.cpp."""

    def __init__(self, llama: LlamaCpp) -> None:
        self._llama = llama

    def renderings(self, chats: Sequence[Chat]) -> Sequence[Rendering]:
        """See Candidate."""
        return [self._llama.rendering(chat) for chat in chats]

    def text_ids(self, texts: Sequence[tuple[str, bool]]) -> Sequence[tuple[int, ...]]:
        """See Candidate."""
        return [self._llama.ids(text, special) for text, special in texts]

    def prompt(self, probe: Probe) -> Message | None:
        """See Candidate."""
        own, common = self._llama.common_prefix(probe.for_llama_cpp(), probe.ids)
        if own == common == len(probe.ids):
            return None
        return msg(
            "llama.cpp splits it into {own} tokens and the app into {count}; they differ from token {token} on.",
            own=own,
            count=len(probe.ids),
            token=common + 1,
        )

    def continues_after(self, probe: Probe, stop_ids: Sequence[int]) -> list[int]:
        """See Candidate."""
        return [token for token in stop_ids if not self._llama.stops(probe.ids, token)]

    def ends(self) -> frozenset[int] | None:
        """See Candidate."""
        return None

    def stops_at(self, probe: Probe, token: int) -> bool:
        """See Candidate."""
        return self._llama.stops(probe.ids, token)

    def follow(self, reference: Reference) -> tuple[Floats, list[int]]:
        """See Candidate."""
        result, tokens = np.zeros(len(reference.answer), np.float32), []
        for i, p in enumerate(reference.logprobs):
            likeliest = self._llama.likeliest([*reference.probe.ids, *reference.answer[:i]], TOP)
            result[i] = grouped_kl(p, likeliest)
            tokens.append(next(iter(likeliest)))
        return result, tokens


def grouped_kl(p: Floats, likeliest: dict[int, float]) -> float:
    """KL over the tokens of `likeliest` and one bucket for the rest; p (vocabulary,) are log-probabilities."""
    ids = np.array(list(likeliest))
    q = np.array(list(likeliest.values()), np.float64)
    own = p[ids].astype(np.float64)
    kl = float((np.exp(own) * (own - q)).sum())
    if len(ids) < len(p):
        rest_p, rest_q = max(1.0 - np.exp(own).sum(), 1e-12), max(1.0 - np.exp(q).sum(), 1e-12)
        kl += rest_p * float(np.log(rest_p / rest_q))
    return max(kl, 0.0)


def log_softmax(logits: Floats) -> Floats:
    """Log-probabilities over the last axis, computed in fp64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)), np.float32)
