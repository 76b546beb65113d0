"""Several adapters at one site in one pass of the base: each computes for its own rows of the batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from finetune_local.system.errors import Unsupported
from finetune_local_backends.torch.kernels import FrozenLinear
from finetune_local_backends.torch.load import Base
from finetune_local_backends.torch.quantised import QuantisedLinear
from finetune_local_backends.torch.tuners.sites import Slot, site_at


@dataclass
class Rows:
    """Whose rows a shared pass computes now: `slices` of `total` rows, and the number of the adapter each belongs to."""

    slices: list[slice] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    total: int = 0


class SplitSlot(Slot):
    """The slots of several adapters at one site, each for its own rows; rows of adapters that have none here are the base's."""

    def __init__(self, rows: Rows) -> None:
        super().__init__()
        self._rows = rows
        self.parts: dict[int, Slot] = {}

    def forward(self, base: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The base is computed once for all where the slots can go on from its output, else for each part."""
        rows = self._rows
        x = args[0] if args else None
        if not isinstance(x, torch.Tensor) or len(x) != rows.total:
            x = next((v for v in kwargs.values() if isinstance(v, torch.Tensor) and len(v) == rows.total), None)
        if x is None:
            raise Unsupported(
                "this model mixes the rows of a batch, so several adapters cannot be trained at once on it."
            )
        if all(slot.goes_on for slot in self.parts.values()):
            return self._from_one_pass(base, x, *args, **kwargs)
        done = []
        for part, owner in zip(rows.slices, rows.owners, strict=True):
            some, more = _of_rows(args, part, rows.total), _of_rows(kwargs, part, rows.total)
            slot = self.parts.get(owner)
            done.append(base(*some, **more) if slot is None else slot(base, *some, **more))
        return _together(done)

    def _from_one_pass(self, base: nn.Module, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        own = [(part, self.parts.get(owner)) for part, owner in zip(self._rows.slices, self._rows.owners, strict=True)]
        filled = [(part, slot) for part, slot in own if slot is not None]
        kinds = {type(slot) for _, slot in filled}
        if len(kinds) == 1 and (made := kinds.pop().at_once(base, x, filled)) is not None:
            return made
        whole = _frozen(base, *args, **kwargs)
        y = whole[0] if isinstance(whole, tuple) else whole
        done = torch.cat([y[part] if slot is None else slot.beside(base, x[part], y[part]) for part, slot in own])
        return (done, *whole[1:]) if isinstance(whole, tuple) else done


@contextmanager
def shared_sites(base: Base, adapters: Sequence[Mapping[str, Slot]]) -> Iterator[Rows]:
    """Within it the sites compute with all these adapters' slots, each for the rows that the Rows say."""
    rows = Rows()
    split: dict[str, SplitSlot] = {}
    for number, slots in enumerate(adapters):
        for path, slot in slots.items():
            split.setdefault(path, SplitSlot(rows)).parts[number] = slot
    sites = {path: site_at(base, path) for path in split}
    for path, site in sites.items():
        site.active = [split[path]]
    try:
        yield rows
    finally:
        for site in sites.values():
            site.active = []


def _of_rows(value: Any, part: slice, total: int) -> Any:
    """Arguments with only these rows of every tensor that has one for each row."""
    if isinstance(value, torch.Tensor):
        return value[part] if value.dim() and len(value) == total else value
    if isinstance(value, tuple | list):
        return type(value)(_of_rows(item, part, total) for item in value)
    if isinstance(value, dict):
        return {key: _of_rows(item, part, total) for key, item in value.items()}
    return value


def _together(parts: Sequence[Any]) -> Any:
    """Outputs of some rows each as one: tensors, or tuples that begin with one (attention gives its weights second)."""
    if isinstance(parts[0], torch.Tensor):
        return torch.cat(list(parts))
    return (torch.cat([part[0] for part in parts]), *parts[0][1:])


def _frozen(base: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """base(...), keeping nothing of the size of the weight for the way back where it is linear."""
    if isinstance(base, nn.Linear | QuantisedLinear):
        return FrozenLinear.apply(args[0], base, True)  # type: ignore[no-untyped-call]
    return base(*args, **kwargs)
