"""The table of a model whose head is its embedding: one array under two names."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from finetune_local.spec.batch import Floats
from finetune_local.spec.low_rank.full_copies import kind_of
from finetune_local.spec.tuners import PREFIX


def shared_with(name: str, names: Collection[str], tensors: Mapping[str, Floats]) -> list[str]:
    """The other names under which an adapter has the same array of a table."""
    tables = [other for other in names if kind_of(other.removeprefix(PREFIX)) in ("embeddings", "heads")]
    return [other for other in tables if name in tables and other != name and tensors[other] is tensors[name]]
