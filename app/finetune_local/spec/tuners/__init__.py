"""Where the trained parameters live: one file per family, found by listing this folder.

A family file has
    TUNER: Tuner        its settings class, how it selects targets, counts, names, begins, folds and merges its tensors
and each backend has a file of the same name in its `methods/` that does the arithmetic.

An adapter has two forms. While it trains it has every tensor of `shapes(plan)`, frozen ones included; that is what a
checkpoint holds. `fold` turns it into what is used from then on: a prompt encoder into the prompt it gives, a shared update
into one per layer, an update with a part subtracted at the start into a plain LoRA. For most families both are the same.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import ClassVar, Protocol

import numpy as np

from finetune_local.spec.peft_config import PeftConfig
from finetune_local.spec.plan import AdapterPlan, BaseInfo, Target
from finetune_local.system.errors import AdapterError, SpecError
from finetune_local.system.fields import Settings, parse
from finetune_local.system.messages import Message, msg

Array = np.ndarray

PREFIX = "base_model.model."
"""What PEFT puts before a module's name in an adapter file."""

OWN_TYPE = "FINETUNE_LOCAL"
"""`peft_type` of what PEFT has no name for: families of our own, and training forms."""


@dataclass(frozen=True)
class Source:
    """What initial values may be made from: the base's weights by name, fp32, as they are computed with (dequantised where
    the base is held quantised), the tokenizer where there is one (`ids` of a text), and the weights as they are on disk."""

    weight: Callable[[str], Array]
    ids: Callable[[str], list[int]] | None = None
    embedding_scale: float = 1.0  # what Gemma's kin multiply their embeddings with, before the first block reads them
    stored: Callable[[str], Array] | None = None


@dataclass(frozen=True)
class VirtualIds:
    """Trained positions put before every text: `count` of them in each of `ensemble_size` prompts that answer side by side."""

    count: int = 0
    ensemble_size: int = 1


@dataclass(frozen=True)
class Calibration:
    """A short training before the real one, to choose settings by: `steps` steps on a `share` of the rows."""

    share: float
    steps: int


class Tracker(Protocol):
    """What a family does to its tensors between optimizer steps (AdaLoRA's budget), in numpy, one for both backends."""

    def update(self, tensors: Mapping[str, Array], gradients: Mapping[str, Array]) -> dict[str, Array]:
        """After each optimizer step, with the gradients that it used (clipped); returns the tensors to replace."""
        ...

    def state(self) -> dict[str, Array]:
        """Everything it remembers, the number of steps included, as named arrays."""
        ...

    def restore(self, state: Mapping[str, Array]) -> None:
        """Put back what state() gave."""
        ...


class Tuner:
    """What the app needs to know of a family; numpy only. A subclass overrides what is different for it."""

    key: ClassVar[str]
    settings: ClassVar[type[Settings]]
    peft_types: ClassVar[tuple[str, ...]] = ()
    """Values of `peft_type` that `read` understands."""

    trains_base: ClassVar[bool] = False
    """Whether it trains weights of the base itself, so that the adapter holds whole weights and nothing beside them."""

    def refusal(self, settings: Settings, precision: str) -> Message | None:
        """Why these settings cannot work on a base held at `precision`, with what to do instead; None where they can."""
        return None

    def plan(self, method: str, settings: Settings, base: BaseInfo) -> AdapterPlan:
        """Choose the targets among the base's weights. Raises SpecError where none match or a rank is too big."""
        raise NotImplementedError

    def lr_factor(self, settings: Settings) -> float:
        """The automatic learning rate by that of LoRA; of the settings, so that it fits whatever name they were chosen by."""
        return 1.0

    def shapes(self, plan: AdapterPlan) -> dict[str, tuple[int, ...]]:
        """Every tensor of the adapter, frozen ones included: its name in the adapter file and its shape."""
        raise NotImplementedError

    def lr_multipliers(self, plan: AdapterPlan) -> Mapping[str, float]:
        """Factors of the learning rate for the tensors that have one other than 1; 0 freezes a tensor."""
        return {}

    def initial(self, plan: AdapterPlan, seed: int, source: Source) -> Mapping[str, Array]:
        """The fp32 tensors an adapter begins with; random ones depend on the seed and the tensor's name alone."""
        raise NotImplementedError

    def neutral(self, plan: AdapterPlan) -> bool:
        """Whether a new adapter leaves the base's answers as they are, up to rounding."""
        return True

    def sharing_refusal(self, plan: AdapterPlan) -> Message | None:
        """Why the adapter cannot share a pass of the base with others that are trained at once; None where it can."""
        if self.virtual_tokens(plan):
            return msg("it puts positions of its own before every text. Train it alone.")
        return None

    def calibration(self, plan: AdapterPlan) -> Calibration | None:
        """The trial that a new training begins with, if settings are open that only it can tell; `chosen` closes them."""
        return None

    def calibrated(self, plan: AdapterPlan, sizes: Mapping[str, float]) -> tuple[Settings, Message]:
        """The settings that follow from a trial's mean squared update at each module, and a sentence for the user."""
        raise NotImplementedError

    def tracker(self, plan: AdapterPlan, steps: int) -> Tracker | None:
        """What is to be done between the `steps` optimizer steps of a training, if anything."""
        return None

    def saved_activations(self, plan: AdapterPlan) -> float:
        """Numbers of each token that the way back needs because of the adapter, in all blocks together (see saved_activations.py).

        In the type that the base computes in; what positions of its own need, the app counts itself.
        """
        return 0.0

    def virtual_ids(self, plan: AdapterPlan) -> VirtualIds:
        """Ids that the adapter puts before every text."""
        return VirtualIds()

    def virtual_tokens(self, plan: AdapterPlan) -> int:
        """How many positions of the model's context the adapter takes for itself, as ids or otherwise."""
        return self.virtual_ids(plan).count

    def fold(self, plan: AdapterPlan, tensors: Mapping[str, Array]) -> tuple[AdapterPlan, dict[str, Array]]:
        """The form for use of a training form; computes the same."""
        return plan, dict(tensors)

    def config(self, plan: AdapterPlan) -> dict[str, object]:
        """adapter_config.json: in PEFT's words where PEFT can read this plan's tensors, else own_config(plan)."""
        return own_config(plan)

    def read(self, config: PeftConfig, shapes: Mapping[str, tuple[int, ...]]) -> AdapterPlan:
        """The plan of an adapter on disk, from PEFT's config and its tensors' shapes. Raises AdapterError."""
        raise AdapterError(msg("adapters of type {kind} cannot be read.", kind=config.peft_type))

    def fits(self, target: Target, shape: tuple[int, ...]) -> bool:
        """Whether a base whose weight has this shape there has the target; a file may not tell all of a target's sizes."""
        return shape == ((target.out_features, target.in_features) if target.in_features else (target.out_features,))

    def facts(self, plan: AdapterPlan) -> dict[str, object]:
        """What `adapters info` tells of an adapter of this family beside its settings."""
        return {}

    def merge_refusal(self, plan: AdapterPlan) -> Message | None:
        """Why the adapter cannot become part of the base's weights, with what to do instead; None where it can."""
        return None

    def sum_refusal(self, plan: AdapterPlan) -> Message | None:
        """Why the adapter cannot be part of a weighted sum of active adapters; None where it can, since its updates add up."""
        return msg("its effect is no sum of updates to the base's weights. Activate it alone.")

    def merge(self, name: str, weight: Array, plan: AdapterPlan, tensors: Mapping[str, Array]) -> Array:
        """A base weight (fp32) with the folded adapter in it; the same array where the adapter does not touch it."""
        raise NotImplementedError


@dataclass(frozen=True)
class Preset:
    """A method as users know it: what it is called and the settings its name stands for.

    `defaults` maps dotted settings ("model.precision", "method.use_dora") to the values the name implies; `recommended` is its place
    among the methods offered first (the first one is the default), None for all others; `tuner` is the key of the file that declares
    it, filled in where presets are listed.
    """

    key: str
    title: str
    summary: str
    paper: str
    defaults: Mapping[str, object] = field(default_factory=dict)
    recommended: int | None = None
    tuner: str = ""


@cache
def tuners() -> Mapping[str, Tuner]:
    """Every family, by key."""
    found: dict[str, Tuner] = {}
    for module in pkgutil.iter_modules(__path__):
        tuner: Tuner = importlib.import_module(f"{__name__}.{module.name}").TUNER
        if tuner.key != module.name:
            raise RuntimeError(f"spec/tuners/{module.name}.py declares key {tuner.key!r}")
        found[tuner.key] = tuner
    return found


def presets_of(tuner: str) -> list[Preset]:
    """The presets declared in a tuner's file."""
    declared: tuple[Preset, ...] = importlib.import_module(f"{__name__}.{tuner}").PRESETS
    return [replace(preset, tuner=tuner) for preset in declared]


def tuner_of(plan: AdapterPlan) -> Tuner:
    """The family of a plan."""
    return tuners()[plan.tuner]


def trainable_parameters(plan: AdapterPlan) -> int:
    """Number of trained numbers, by the family's formula; frozen tensors are not counted."""
    tuner = tuner_of(plan)
    lr_multipliers = tuner.lr_multipliers(plan)
    return sum(math.prod(shape) for name, shape in tuner.shapes(plan).items() if lr_multipliers.get(name, 1.0))


def check_rank(rank: int, target: Target, flag: str = "--rank") -> None:
    """Raise SpecError where a rank, given by `flag`, is above what the matrix can use."""
    limit = min(target.in_features, target.out_features)
    if rank > limit:
        raise SpecError(
            msg(
                "rank is {rank}, but {module} is {rows} × {columns}: a rank above {limit} adds nothing. Lower {flag} "
                "to {limit} or less.",
                rank=rank,
                module=target.module,
                rows=target.out_features,
                columns=target.in_features,
                limit=limit,
                flag=flag,
            )
        )


def own_config(plan: AdapterPlan) -> dict[str, object]:
    """adapter_config.json of a plan that PEFT has no words for: the plan itself."""
    return {
        "peft_type": OWN_TYPE,
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "family": plan.tuner,
        "method": plan.method,
        "settings": plan.settings.model_dump(mode="json"),
        "targets": [[t.module, t.in_features, t.out_features] for t in plan.targets],
    }


def holds_base_weights(config: PeftConfig) -> bool:
    """Whether an adapter with this config holds whole weights of the base in place of an update."""
    tuner = tuners().get(config.family or "")
    return config.peft_type == OWN_TYPE and tuner is not None and tuner.trains_base


def from_own_config(config: PeftConfig) -> AdapterPlan:
    """What own_config() wrote. Raises AdapterError where it is damaged or of a family this version does not know."""
    tuner = tuners().get(config.family)
    if tuner is None:
        raise AdapterError(
            msg(
                "the adapter is of the family '{name}', which this version does not know. Update the program.",
                name=config.family,
            )
        )
    lacking = [name for name in ("settings", "targets") if getattr(config, name) is None]
    if lacking or config.settings is None or config.targets is None:
        raise AdapterError(
            msg("adapter_config.json is damaged (it lacks '{lacking}'). Copy the adapter again.", lacking=lacking[0])
        )
    try:
        settings = parse(tuner.settings, config.settings, "adapter_config.json")
    except SpecError as error:
        raise AdapterError(
            msg("adapter_config.json is damaged ({error}). Copy the adapter again.", error=error)
        ) from None
    return AdapterPlan(config.method, config.family, settings, tuple(Target(*target) for target in config.targets))
