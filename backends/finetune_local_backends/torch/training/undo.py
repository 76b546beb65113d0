"""Undoing a step on torch, which writes in place: from copies made before the first write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import psutil
import torch

from finetune_local.spec.tuners import Tracker
from finetune_local.system.errors import OutOfMemory
from finetune_local.system.messages import msg
from finetune_local_backends.torch import memory
from finetune_local_backends.torch.training.optimizer import Optimizer, Place
from finetune_local_backends.undo import affordable, all_or_nothing, track_again, tracked


@dataclass(frozen=True)
class Written:
    """What a step writes for one adapter, and what to call after it changed."""

    optimizer: Optimizer
    tracker: Tracker | None
    changed: Callable[[], None]


class TorchUndo:
    """See Undo. It takes a second copy of the trained parameters and of the optimizer's states while the step writes."""

    def __init__(self, work: Sequence[Written], places: Sequence[Place]) -> None:
        self._work = [(one, tracked(one.tracker)) for one in work]
        self._numbers = [(holder, key, holder[key]) for holder, key in places if not _is_tensor(holder[key])]
        self._tensors: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
        for holder, key in places:
            if _is_tensor(tensor := holder[key]):
                self._tensors.setdefault((tensor.dtype, tensor.device), []).append(tensor.detach())
        # One copy for all tensors of a type: an adapter has a thousand small ones, and a thousand copies would take as long as a step.
        self._copies = {kind: torch.cat([t.reshape(-1) for t in tensors]) for kind, tensors in self._tensors.items()}

    @torch.no_grad()
    def put_back(self) -> None:
        """See Undo."""
        for kind, tensors in self._tensors.items():
            copies = torch.split(self._copies[kind], [tensor.numel() for tensor in tensors])
            for tensor, copy in zip(tensors, copies, strict=True):
                tensor.copy_(copy.reshape(tensor.shape))
        for holder, key, number in self._numbers:
            holder[key] = number
        for one, kept in self._work:
            track_again(one.tracker, kept)
            one.changed()


def writing(work: Sequence[Written], device: torch.device) -> AbstractContextManager[None]:
    """Around the writes of a step: all or nothing.

    A whole model is not copied where memory is short (see affordable()), and nothing is where the copies find no room: every
    state exists already and is updated in place, so no allocation can fail half-way.
    """
    places = [place for one in work for place in one.optimizer.written()]
    if not affordable(sum(_bytes(holder[key]) for holder, key in places), _free(device)):
        return all_or_nothing(None)
    try:
        with memory.guard(msg("back up what a step changes")):
            undo = TorchUndo(work, places)
    except OutOfMemory:
        memory.release(device)
        return all_or_nothing(None)
    return all_or_nothing(undo)


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)


def _bytes(value: torch.Tensor | int) -> int:
    return value.numel() * value.element_size() if isinstance(value, torch.Tensor) else 0


def _free(device: torch.device) -> int:
    """Bytes that may still be allocated: on a card with those that torch has reserved and not used."""
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + kept)
