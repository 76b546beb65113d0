"""Which conversations are held out: decided by their content and the seed, so equal ones are never on both sides."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from finetune_local.data.conversation import Conversation

Keys = npt.NDArray[np.uint64]


def content_key(conversation: Conversation, seed: int) -> int:
    """64 bits of a hash over roles and texts (spaces at their ends aside), whatever file or format they came from.

    Keyed by the seed, so that another seed gives another order. Equal contents have equal keys; among a million different
    ones the chance that any two share a key is 3e-8.
    """
    digest = hashlib.blake2b(digest_size=8, key=seed.to_bytes(8, "little"))
    parts = [("text", conversation.text)] if conversation.text is not None else []
    worse = [] if conversation.rejected is None else [("rejected", conversation.rejected.content)]
    for role, text in [*parts, *((m.role, m.content) for m in conversation.messages), *worse]:
        data = text.strip().encode("utf-8")
        digest.update(f"{role}:{len(data)}:".encode())
        digest.update(data)
    return int.from_bytes(digest.digest(), "big")


def held_out(keys: Keys, fraction: float) -> Keys:
    """The keys for validation, sorted: the lowest round(fraction × unique), at least one and never all of two or more.

    Depends on the set of keys alone, not on their order or on how often one occurs.
    """
    unique = np.unique(keys)
    if fraction <= 0 or len(unique) < 2:
        return unique[:0]
    count = min(max(1, round(fraction * len(unique))), len(unique) - 1)
    return unique[:count]
