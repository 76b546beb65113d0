"""An export as the gate sees it once it is loaded: a merged folder in a session, or a GGUF file in llama.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from finetune_local.backend import Session
from finetune_local.data.conversation import Message
from finetune_local.export.llama import LlamaCpp
from finetune_local.export.probes import Probe

if TYPE_CHECKING:
    from finetune_local.data.tokenizer import Tokenizer

Floats = npt.NDArray[np.float32]
TOP = 512
"""llama.cpp tells the likeliest tokens only; the KL is taken over these and all others as one (a lower bound)."""


@dataclass(frozen=True)
class Reference:
    """One prompt with the reference's greedy answer and log-probabilities.

    answer (n,): the last is what follows, a stop token or simply the next; logprobs (n, vocabulary).
    """

    probe: Probe
    answer: tuple[int, ...]
    logprobs: Floats


class Candidate(Protocol):
    """An export that has been loaded."""

    def prompt(self, probe: Probe) -> str | None:
        """None where it reads the prompt as the same tokens, else a sentence."""
        ...

    def stop_tokens(self, probe: Probe, stop_ids: Sequence[int]) -> list[int]:
        """Those of the app's stop tokens at which it does not stop."""
        ...

    def template(self) -> str | None:
        """Its chat template."""
        ...

    def follow(self, reference: Reference) -> tuple[Floats, list[int]]:
        """Along the reference's answer: KL(reference ‖ export), (n,), and the export's likeliest tokens, n of them."""
        ...


class FolderCandidate:
    """A merged folder in a fresh session."""

    def __init__(self, session: Session, tokenizer: Tokenizer) -> None:
        self._session, self._tokenizer = session, tokenizer

    def prompt(self, probe: Probe) -> str | None:
        """See Candidate."""
        from finetune_local.data.encode import prompt_ids

        asked = probe.messages or (Message("user", probe.text or ""),)
        ids = prompt_ids(asked, self._tokenizer, "chat" if probe.messages else "raw")
        return _difference(probe.ids, ids)

    def stop_tokens(self, probe: Probe, stop_ids: Sequence[int]) -> list[int]:
        """See Candidate."""
        return sorted(set(stop_ids) - self._tokenizer.stop_ids)

    def template(self) -> str | None:
        """See Candidate."""
        return self._tokenizer.template

    def follow(self, reference: Reference) -> tuple[Floats, list[int]]:
        """See Candidate."""
        ids = [*reference.probe.ids, *reference.answer[:-1]]
        own = log_softmax(self._session.logits(ids)[len(reference.probe.ids) - 1 :])
        p = reference.logprobs
        kl = np.maximum((np.exp(p) * (p - own)).sum(axis=-1), 0.0)  # rounding may leave it a hair below zero
        return np.asarray(kl, np.float32), [int(i) for i in own.argmax(axis=-1)]


class GgufCandidate:
    """A GGUF file in llama.cpp."""

    def __init__(self, llama: LlamaCpp, file: Path) -> None:
        self._llama, self._file = llama, file

    def prompt(self, probe: Probe) -> str | None:
        """See Candidate."""
        own, common = self._llama.common_prefix(probe.asked(), probe.ids)
        if own == common == len(probe.ids):
            return None
        return f"llama.cpp makes {own} tokens of it and the app {len(probe.ids)}; they part at token {common + 1}."

    def stop_tokens(self, probe: Probe, stop_ids: Sequence[int]) -> list[int]:
        """See Candidate."""
        return [token for token in stop_ids if not self._llama.stops(probe.ids, token)]

    def template(self) -> str | None:
        """See Candidate."""
        from gguf import GGUFReader

        field_ = GGUFReader(self._file).get_field("tokenizer.chat_template")
        return str(field_.contents()) if field_ is not None else None

    def follow(self, reference: Reference) -> tuple[Floats, list[int]]:
        """See Candidate."""
        result, given = np.zeros(len(reference.answer), np.float32), []
        for i, p in enumerate(reference.logprobs):
            likeliest = self._llama.likeliest([*reference.probe.ids, *reference.answer[:i]], TOP)
            result[i] = grouped_kl(p, likeliest)
            given.append(next(iter(likeliest)))
        return result, given


def grouped_kl(p: Floats, likeliest: dict[int, float]) -> float:
    """KL over the tokens of `likeliest` and the rest taken as one token; p (vocabulary,) are log-probabilities."""
    ids = np.array(list(likeliest))
    q = np.array(list(likeliest.values()), np.float64)
    own = p[ids].astype(np.float64)
    kl = float((np.exp(own) * (own - q)).sum())
    if len(ids) < len(p):
        rest_p, rest_q = max(1.0 - np.exp(own).sum(), 1e-12), max(1.0 - np.exp(q).sum(), 1e-12)
        kl += rest_p * float(np.log(rest_p / rest_q))
    return max(kl, 0.0)


def _difference(ours: Sequence[int], theirs: Sequence[int]) -> str | None:
    if list(ours) == list(theirs):
        return None
    part = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
    at = min(len(ours), len(theirs)) if part is None else part
    return f"the export makes {len(theirs)} tokens of it and the base {len(ours)}; they part at token {at + 1}."


def log_softmax(logits: Floats) -> Floats:
    """Log-probabilities over the last axis, computed in fp64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)), np.float32)
