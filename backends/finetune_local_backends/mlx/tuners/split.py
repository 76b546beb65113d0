"""Several adapters as one: a shared pass of the base in which each computes for its own rows of the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from finetune_local.system.errors import Unsupported
from finetune_local_backends.mlx.tuners import Adapter
from finetune_local_backends.mlx.tuners.sites import Site, SiteAdapter, Slot


@dataclass
class Rows:
    """Whose rows a shared pass computes now: `slices` of `total` rows, and the number of the adapter each belongs to."""

    slices: list[slice] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    total: int = 0


class SplitSlot(Slot):
    """The slots of several adapters at one site, each for its own rows; rows of adapters that have none here are the base's."""

    def __init__(self, module: str, rows: Rows) -> None:
        super().__init__(module, {})
        self._rows = rows
        self.parts: dict[int, Slot] = {}

    def __call__(self, base: Any, *args: Any, **kwargs: Any) -> Any:
        """The base is computed once for all where the slots can go on from its output, else for each part."""
        rows = self._rows
        if not any(isinstance(a, mx.array) and a.shape[:1] == (rows.total,) for a in (*args, *kwargs.values())):
            raise Unsupported(
                "this model mixes the rows of a batch, so several adapters cannot be trained at once on it."
            )
        y = base(*args, **kwargs) if all(slot.goes_on for slot in self.parts.values()) else None
        done = []
        for part, owner in zip(rows.slices, rows.owners, strict=True):
            slot = self.parts.get(owner)
            if y is not None:
                done.append(y[part] if slot is None else slot.beside(base, args[0][part], y[part]))
                continue
            some, more = _of_rows(args, part, rows.total), _of_rows(kwargs, part, rows.total)
            done.append(base(*some, **more) if slot is None else slot(base, *some, **more))
        return mx.concatenate(done)


class SplitAdapter(Adapter):
    """See Adapter. Parameters have the adapter's number before their name, as two may have tensors of one name."""

    def __init__(self, adapters: Sequence[SiteAdapter]) -> None:
        self._adapters = list(adapters)
        self.rows = Rows()
        self._split: dict[int, tuple[Site, SplitSlot]] = {}
        for number, adapter in enumerate(adapters):
            for site, slot in adapter.sites():
                self._split.setdefault(id(site), (site, SplitSlot(slot.module, self.rows)))[1].parts[number] = slot

    @property
    def parameters(self) -> dict[str, mx.array]:  # type: ignore[override]  # here made of the others' own
        """All of them, under their numbered names."""
        return {own(n, name): array for n, a in enumerate(self._adapters) for name, array in a.parameters.items()}

    def place(self, parameters: Mapping[str, mx.array]) -> None:
        """See Adapter."""
        parts: list[dict[str, mx.array]] = [{} for _ in self._adapters]
        for numbered, array in parameters.items():
            number, _, name = numbered.partition(":")
            parts[int(number)][name] = array
        for adapter, part in zip(self._adapters, parts, strict=True):
            adapter.place(part)
        for site, slot in self._split.values():
            site.active = slot

    def withdraw(self) -> None:
        """See Adapter."""
        for site, _ in self._split.values():
            site.active = None

    def dropout(self, key: mx.array | None) -> None:
        """See Adapter."""
        keys = [None] * len(self._adapters) if key is None else mx.random.split(key, len(self._adapters))
        for adapter, own_key in zip(self._adapters, keys, strict=True):
            adapter.dropout(own_key)

    def penalty(self, parameters: Mapping[str, mx.array]) -> mx.array | None:
        """See Adapter."""
        self.place(parameters)
        parts = [
            part for _, split in self._split.values() for s in split.parts.values() if (part := s.penalty()) is not None
        ]
        return mx.stack(parts).sum() if parts else None

    def used(self) -> dict[int | None, list[str]]:
        """See Adapter."""
        result: dict[int | None, list[str]] = {}
        for number, adapter in enumerate(self._adapters):
            for block, names in adapter.used().items():
                result.setdefault(block, []).extend(own(number, name) for name in names)
        return result


def own(number: int, name: str) -> str:
    """A parameter's name among those of several adapters."""
    return f"{number}:{name}"


def _of_rows(value: Any, part: slice, total: int) -> Any:
    """Arguments with only these rows of every array that has one for each row."""
    if isinstance(value, mx.array):
        return value[part] if value.shape[:1] == (total,) else value
    if isinstance(value, tuple | list):
        return type(value)(_of_rows(item, part, total) for item in value)
    if isinstance(value, dict):
        return {key: _of_rows(item, part, total) for key, item in value.items()}
    return value
