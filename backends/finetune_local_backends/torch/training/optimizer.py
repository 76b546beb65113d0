"""AdamW with full, 8-bit or paged states over named fp32 parameters; its whole state in and out as numpy arrays.

All states are allocated first, so that a step allocates nothing that could fail half-way. Steps write in place: to undo one,
copies are made before its first write.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import torch
from torch import nn

from finetune_local.spec.run import TrainingSettings
from finetune_local.spec.tuners import Tracker
from finetune_local.system.errors import AdapterError, OutOfMemory, Unsupported
from finetune_local.system.messages import msg
from finetune_local_backends.torch import memory
from finetune_local_backends.undo import affordable, all_or_nothing, track_again, tracked

Arrays = dict[str, npt.NDArray[np.generic]]
Place = tuple[dict[str, Any], str]
"""Where a tensor or a number is stored: a dict and its key."""
# States that change from step to step; bitsandbytes' other tensors are constant tables.
_CHANGING = ("step", "exp_avg", "exp_avg_sq", "state1", "state2", "absmax1", "absmax2")


class Optimizer:
    """Clips and applies gradients; see torch.optim.AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2)."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        training: TrainingSettings,
        device: torch.device,
        lr_multipliers: Mapping[str, float],
    ) -> None:
        """`lr_multipliers` are factors of the learning rate, for parameters whose factor is not 1."""
        self._names: dict[str, nn.Parameter] = {}
        for name, parameter in parameters.items():
            if all(parameter is not other for other in self._names.values()):  # tied weights are updated once
                self._names[name] = parameter
        self._limit = training.max_gradient_norm
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self._names.items():
            groups.setdefault(lr_multipliers.get(name, 1.0), []).append(parameter)
        self._inner = _build(
            [{"params": group, "factor": factor} for factor, group in groups.items()], training, device
        )
        self._device = device

    def gradient_norm(self) -> float:
        """L2 norm over all gradients, in fp32; NaN or infinite if one of them is."""
        return float(torch.nn.utils.get_total_norm(self._gradients()))

    def apply(self, norm: float, learning_rate: float) -> None:
        """Scale the gradients to the clipping norm and take one step."""
        if self._limit and norm > self._limit:
            for gradient in self._gradients():
                gradient.mul_(self._limit / (norm + 1e-6))
        for group in self._inner.param_groups:
            group["lr"] = learning_rate * group["factor"]
        self._inner.step()

    def written(self) -> list[Place]:
        """What apply() writes, as (holder, key): the parameters and their states."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # paged states are moved without torch's knowledge
        names: dict[str, Any] = dict(self._names)
        return [(names, name) for name in names] + [(holder, slot) for _, holder, slot in self._changing_places()]

    def clear(self) -> None:
        """Drop the gradients."""
        for parameter in self._names.values():
            parameter.grad = None

    def state(self) -> Arrays:
        """Copies of every state, as "slot:name"."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # paged states are moved without torch's knowledge
        return {key: _array(holder[slot]) for key, holder, slot in self._changing_places()}

    def restore(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Restore what state() returned. Raises AdapterError and changes nothing if it does not fit."""
        places = self._changing_places()
        if wrong := sorted({key for key, _, _ in places} ^ set(state)):
            raise AdapterError(
                msg(
                    "the optimizer's saved state does not fit: {number} entries differ, the first is {name}. It was "
                    "saved with another optimizer, method or backend.",
                    number=len(wrong),
                    name=wrong[0],
                )
            )
        for key, holder, slot in places:
            now = _array(holder[slot])
            if now.shape != state[key].shape or now.dtype != state[key].dtype:
                raise AdapterError(
                    msg(
                        "the optimizer's saved state does not fit: {name} is {dtype} {shape}, here {dtype2} {shape2}.",
                        name=key,
                        dtype=state[key].dtype,
                        shape=state[key].shape,
                        dtype2=now.dtype,
                        shape2=now.shape,
                    )
                )
        for key, holder, slot in places:
            if isinstance(holder[slot], torch.Tensor):
                holder[slot].copy_(torch.from_numpy(np.array(state[key])))
            else:
                holder[slot] = int(state[key])

    def _gradients(self) -> list[torch.Tensor]:
        return [parameter.grad for parameter in self._names.values() if parameter.grad is not None]

    def _changing_places(self) -> list[tuple[str, dict[str, Any], str]]:
        return [
            (f"{slot}:{name}", self._inner.state[parameter], slot)
            for name, parameter in self._names.items()
            for slot in _CHANGING
            if slot in self._inner.state[parameter]
        ]


def _build(groups: list[dict[str, Any]], training: TrainingSettings, device: torch.device) -> torch.optim.Optimizer:
    options: dict[str, Any] = {
        "lr": 0.0,
        "betas": (training.beta1, training.beta2),
        "eps": training.epsilon,
        "weight_decay": training.weight_decay,
    }
    if training.optimizer == "adamw":
        plain = torch.optim.AdamW(groups, **options, fused=True)
        for parameter in [parameter for group in groups for parameter in group["params"]]:
            step_place = parameter.device if device.type == "cuda" else torch.device("cpu")
            plain.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=step_place),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        return plain
    if importlib.util.find_spec("bitsandbytes") is None:
        raise Unsupported(
            msg(
                "--optimizer {optimizer} needs bitsandbytes, which is not installed. Install: pip install "
                "bitsandbytes, or use --optimizer adamw.",
                optimizer=training.optimizer,
            )
        )
    import bitsandbytes

    kind = {
        "adamw-8bit": bitsandbytes.optim.AdamW8bit,
        "paged-adamw": bitsandbytes.optim.PagedAdamW,
        "paged-adamw-8bit": bitsandbytes.optim.PagedAdamW8bit,
    }[training.optimizer]
    lean: torch.optim.Optimizer = kind(groups, **options)
    for number, group in enumerate(lean.param_groups):
        for index, parameter in enumerate(group["params"]):
            lean.init_state(group, parameter, number, index)  # type: ignore[attr-defined]
    return lean


def _array(value: torch.Tensor | int) -> npt.NDArray[np.generic]:
    if isinstance(value, torch.Tensor):
        return np.array(value.detach().cpu().numpy())
    return np.array(value, np.int64)


def finite(*numbers: float) -> bool:
    """Whether all numbers are finite."""
    return all(math.isfinite(number) for number in numbers)


@dataclass(frozen=True)
class Written:
    """What a step writes for one adapter, and a function to call after it has been restored."""

    optimizer: Optimizer
    tracker: Tracker | None
    changed: Callable[[], None]


class TorchUndo:
    """See Undo. Needs memory for a second copy of the trained parameters and the optimizer's states while the step writes."""

    def __init__(self, work: Sequence[Written], places: Sequence[Place]) -> None:
        self._work = [(one, tracked(one.tracker)) for one in work]
        self._numbers = [(holder, key, holder[key]) for holder, key in places if not _is_tensor(holder[key])]
        self._tensors: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
        for holder, key in places:
            if _is_tensor(tensor := holder[key]):
                self._tensors.setdefault((tensor.dtype, tensor.device), []).append(tensor.detach())
        # One copy for all tensors of a type: an adapter has a thousand small ones, and copying each would take as long as a step.
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
    """Context of a step's writes: all or nothing.

    A whole model is not copied if memory is short (see affordable()), and nothing is copied if allocating the copies fails. All states are already allocated and updated in place, so no allocation can fail half-way.
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
    """Bytes that can still be allocated, on a GPU including those that torch has reserved but not used."""
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + kept)
