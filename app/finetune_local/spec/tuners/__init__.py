"""Tuners: where the trained parameters live. One file per tuner, found by listing this folder.

A tuner's file declares
    TUNER: Tuner        settings, target selection, tensor shapes, initial values, file format, folding, merging; numpy only
    PRESETS             what users call methods: a name, a paper, default settings that a user may override
and each backend has a file of the same name in its `tuners/` with the forward and backward pass.

An adapter has two forms. The training form has every tensor of `shapes(plan)`, frozen ones included; checkpoints store it.
`fold` turns it into the inference form: a prompt encoder becomes its prompt, a shared update one update per layer, a PiSSA
update a plain LoRA. For most tuners the two forms are the same.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import ClassVar, Protocol

import numpy as np

from finetune_local.spec.peft_config import PeftConfig
from finetune_local.spec.plan import AdapterPlan, BaseInfo, Target
from finetune_local.system.errors import AdapterError, SpecError, UnknownName
from finetune_local.system.fields import Settings, choices, declared, parse
from finetune_local.system.messages import Message, msg

Array = np.ndarray

PREFIX = "base_model.model."
"""PEFT's prefix of a module's name in an adapter file."""

OWN_TYPE = "FINETUNE_LOCAL"
"""`peft_type` of plans that PEFT cannot express: tuners it does not have, and training forms."""


@dataclass(frozen=True)
class Source:
    """What initial values may be computed from.

    `weight(name)` is a base weight in fp32 as the session computes with it, dequantised if the base is quantised; `stored(name)`
    is the same weight as it is on disk; `ids(text)` tokenizes; `embedding_scale` is the factor that some models (Gemma)
    apply to embeddings before the first block.
    """

    weight: Callable[[str], Array]
    ids: Callable[[str], list[int]] | None = None
    embedding_scale: float = 1.0  # Gemma multiplies its embeddings before the first block
    stored: Callable[[str], Array] | None = None


@dataclass(frozen=True)
class VirtualIds:
    """Trained ids in front of every text: `count` per prompt, and `ensemble_size` prompts that answer in parallel."""

    count: int = 0
    ensemble_size: int = 1


@dataclass(frozen=True)
class Calibration:
    """A short training run that settings are derived from: `steps` optimizer steps on a random `share` of the rows."""

    share: float
    steps: int


class Tracker(Protocol):
    """State of a tuner that changes its tensors between optimizer steps (AdaLoRA's rank budget). Numpy, shared by both backends."""

    def update(self, tensors: Mapping[str, Array], gradients: Mapping[str, Array]) -> dict[str, Array]:
        """Called after each optimizer step with the tensors and the clipped gradients it used; returns the tensors to replace."""
        ...

    def state(self) -> dict[str, Array]:
        """The tracker's state, step count included, as named arrays; saved in checkpoints."""
        ...

    def restore(self, state: Mapping[str, Array]) -> None:
        """Restore what `state` returned."""
        ...


class Tuner:
    """Everything the app needs to know about a tuner. Numpy only; subclasses override what differs.

    Names of tensors are those in the adapter file; shapes are as torch stores them, (out, in) for a matrix.
    """

    key: ClassVar[str]
    settings: ClassVar[type[Settings]]
    peft_types: ClassVar[tuple[str, ...]] = ()
    """The values of `peft_type` that `read` accepts."""

    trains_base: ClassVar[bool] = False
    """Whether it trains the base's own weights, so that the adapter is those weights and nothing else."""

    def refusal(self, settings: Settings, precision: str) -> Message | None:
        """Why these settings cannot train on a base loaded at `precision`, and what to do instead; None if they can."""
        return None

    def plan(self, method: str, settings: Settings, base: BaseInfo) -> AdapterPlan:
        """Select the target modules. Raises SpecError if none match or a rank exceeds a matrix."""
        raise NotImplementedError

    def lr_factor(self, settings: Settings) -> float:
        """The automatic learning rate, as a multiple of LoRA's."""
        return 1.0

    def shapes(self, plan: AdapterPlan) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor in the training form, frozen ones included."""
        raise NotImplementedError

    def lr_multipliers(self, plan: AdapterPlan) -> Mapping[str, float]:
        """Learning-rate multipliers by tensor name; a tensor that is not listed has 1, and 0 freezes it."""
        return {}

    def initial(self, plan: AdapterPlan, seed: int, source: Source) -> Mapping[str, Array]:
        """Initial fp32 tensors. Random values depend on the seed and the tensor's name only, so they are equal on every backend."""
        raise NotImplementedError

    def neutral(self, plan: AdapterPlan) -> bool:
        """Whether a new adapter leaves the base's outputs unchanged, up to rounding."""
        return True

    def sharing_refusal(self, plan: AdapterPlan) -> Message | None:
        """Why the adapter cannot share a forward pass with other adapters in multi-adapter training; None if it can."""
        if self.virtual_tokens(plan):
            return msg("it puts virtual tokens before every text. Train it alone.")
        return None

    def calibration(self, plan: AdapterPlan) -> Calibration | None:
        """The calibration run needed before training, if settings are open that only it can decide; `calibrated` fills them in."""
        return None

    def calibrated(self, plan: AdapterPlan, sizes: Mapping[str, float]) -> tuple[Settings, Message]:
        """Settings derived from a calibration run, and a sentence about them; `sizes` maps modules to their mean squared update."""
        raise NotImplementedError

    def tracker(self, plan: AdapterPlan, steps: int) -> Tracker | None:
        """The tracker for a training of `steps` optimizer steps, or None."""
        return None

    def saved_activations(self, plan: AdapterPlan) -> float:
        """Numbers per token saved for backward because of the adapter, summed over all blocks (see saved_inputs() in targets.py).

        Virtual tokens are counted elsewhere (models/memory/estimate.py).
        """
        return 0.0

    def virtual_ids(self, plan: AdapterPlan) -> VirtualIds:
        """The trained ids in front of every text."""
        return VirtualIds()

    def virtual_tokens(self, plan: AdapterPlan) -> int:
        """Positions of the model's context that the adapter uses, whether as ids (prompt) or as keys and values (prefix)."""
        return self.virtual_ids(plan).count

    def fold(self, plan: AdapterPlan, tensors: Mapping[str, Array]) -> tuple[AdapterPlan, dict[str, Array]]:
        """The inference form of a training form; it computes the same function."""
        return plan, dict(tensors)

    def config(self, plan: AdapterPlan) -> dict[str, object]:
        """Contents of adapter_config.json: PEFT's config if PEFT can read the tensors, else own_config(plan)."""
        return own_config(plan)

    def read(self, config: PeftConfig, shapes: Mapping[str, tuple[int, ...]]) -> AdapterPlan:
        """The plan of an adapter on disk, from its config and its tensors' shapes. Raises AdapterError."""
        raise AdapterError(msg("adapters of type {kind} cannot be read.", kind=config.peft_type))

    def fits(self, target: Target, shape: tuple[int, ...]) -> bool:
        """Whether a base weight of this shape matches the target. Files of some methods record only one of a target's sizes."""
        return shape == ((target.out_features, target.in_features) if target.in_features else (target.out_features,))

    def facts(self, plan: AdapterPlan) -> dict[str, object]:
        """Extra lines for `adapters info`, by label."""
        return {}

    def merge_refusal(self, plan: AdapterPlan) -> Message | None:
        """Why the adapter cannot be merged into the base's weights, and what to do instead; None if it can."""
        return None

    def sum_refusal(self, plan: AdapterPlan) -> Message | None:
        """Why the adapter cannot be part of a weighted sum of active adapters; None if its updates are additive."""
        return msg("its effect is not a sum of updates to the base's weights. Activate it alone.")

    def merge(self, name: str, weight: Array, plan: AdapterPlan, tensors: Mapping[str, Array]) -> Array:
        """A base weight (fp32) with the folded adapter merged in; returns `weight` itself if the adapter does not touch it."""
        raise NotImplementedError


@dataclass(frozen=True)
class Preset:
    """A method as users see it: a name for a tuner with default settings.

    `defaults` maps dotted settings ("model.precision", "method.use_dora") to values; `tuner` is the key of the declaring file,
    filled in by presets_of().
    """

    key: str
    title: str
    summary: str
    paper: str
    defaults: Mapping[str, object] = field(default_factory=dict)
    recommended: int | None = None
    estimated: tuple[str, ...] = ()
    """Precisions of the base whose memory lists of models show for this method."""
    in_mlx_lm: bool = False
    """Whether mlx-lm trains the same kind of adapter, under this key."""
    tuner: str = ""


@cache
def tuners() -> Mapping[str, Tuner]:
    """All tuners by key."""
    return declared(__name__, "TUNER", Tuner)


def presets_of(tuner: str) -> list[Preset]:
    """The presets declared in a tuner's file."""
    presets: tuple[Preset, ...] = importlib.import_module(f"{__name__}.{tuner}").PRESETS
    return [replace(preset, tuner=tuner) for preset in presets]


def tuner_of(plan: AdapterPlan) -> Tuner:
    """The tuner of a plan."""
    return tuners()[plan.tuner]


def trainable_parameters(plan: AdapterPlan) -> int:
    """Number of trainable parameters, computed from the shapes; frozen tensors are not counted."""
    tuner = tuner_of(plan)
    lr_multipliers = tuner.lr_multipliers(plan)
    return sum(math.prod(shape) for name, shape in tuner.shapes(plan).items() if lr_multipliers.get(name, 1.0))


def check_rank(rank: int, target: Target, flag: str = "--rank") -> None:
    """Raise SpecError if a rank, given by `flag`, exceeds the smaller side of the target's matrix."""
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
    """adapter_config.json of a plan that PEFT cannot express: the plan itself."""
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
    """Whether an adapter with this config is trained weights of the base instead of an update."""
    tuner = tuners().get(config.family or "")
    return config.peft_type == OWN_TYPE and tuner is not None and tuner.trains_base


def from_own_config(config: PeftConfig) -> AdapterPlan:
    """The plan that own_config() wrote. Raises AdapterError if it is damaged or its tuner is unknown to this version."""
    tuner = tuners().get(config.family)
    if tuner is None:
        raise AdapterError(
            msg(
                "the adapter uses the tuner '{name}', which this version does not support. Update the app.",
                name=config.family,
            )
        )
    lacking = [name for name in ("settings", "targets") if getattr(config, name) is None]
    if lacking or config.settings is None or config.targets is None:
        raise AdapterError(
            msg("adapter_config.json is damaged ('{lacking}' is missing). Copy the adapter again.", lacking=lacking[0])
        )
    try:
        settings = parse(tuner.settings, config.settings, "adapter_config.json")
    except SpecError as error:
        raise AdapterError(
            msg("adapter_config.json is damaged ({error}). Copy the adapter again.", error=error)
        ) from None
    return AdapterPlan(config.method, config.family, settings, tuple(Target(*target) for target in config.targets))


@cache
def presets() -> Mapping[str, Preset]:
    """All presets by key, in alphabetical order."""
    found: dict[str, Preset] = {}
    for tuner in tuners():
        for preset in presets_of(tuner):
            if preset.key in found:
                raise RuntimeError(f"two presets are called {preset.key!r}")
            found[preset.key] = preset
    return dict(sorted(found.items(), key=lambda item: item[0].replace("-", "_")))


@cache
def recommended() -> tuple[Preset, ...]:
    """The presets to offer first; the first of them is the default."""
    places = {preset.recommended: preset for preset in presets().values() if preset.recommended is not None}
    return tuple(places[place] for place in sorted(places))


def preset_named(key: str) -> Preset:
    """The preset called `key`. Raises UnknownName with the known ones."""
    known = presets()
    if key not in known:
        raise UnknownName(
            msg("there is no method '{name}'.{did_you_mean} Known methods: {names}.", **choices(key, known))
        )
    return known[key]
