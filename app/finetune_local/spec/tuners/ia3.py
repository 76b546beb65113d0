"""IA³: trained vectors that scale keys, values and the hidden vector of the MLP.

Liu et al. 2022, arXiv:2205.05638, section 3.3: l_k ∘ K, l_v ∘ V, W₂·(l_ff ∘ γ(W₁·x)). As in PEFT, a vector scales a layer's
output (bias included), or the input for the layers of `ia3_inputs`. Shapes: output (out, 1), input (1, in).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np

from finetune_local.spec.peft_config import PeftConfig
from finetune_local.spec.plan import AdapterPlan, BaseInfo, Target
from finetune_local.spec.targets import AtLinear, check_inside, select_linear
from finetune_local.spec.tuners import PREFIX, Array, Preset, Source, Tuner
from finetune_local.system.errors import AdapterError, SpecError
from finetune_local.system.fields import Settings, did_you_mean, setting
from finetune_local.system.messages import msg

VECTOR = ".ia3_l"


class Ia3Settings(AtLinear):
    """Settings of IA³."""

    ia3_inputs: tuple[str, ...] = setting(
        ("down_proj", "fc2"),
        help="Layers whose input is scaled instead of the output (repeatable).",
        group="method",
        flag="--ia3-input",
        metavar="NAME",
    )


class Ia3(Tuner):
    """IA³. Only the scaled side of a target has a size, the other is 0, because PEFT's files record no more."""

    key = "ia3"
    settings = Ia3Settings
    peft_types = ("IA3",)

    def plan(self, method: str, settings: Settings, base: BaseInfo) -> AdapterPlan:
        """Select the linear layers. Raises SpecError if a name of `ia3_inputs` matches none of them."""
        chosen = cast(Ia3Settings, settings)
        found = select_linear(base.weights, chosen.targets, chosen.layers)
        usual = Ia3Settings.model_fields["ia3_inputs"].default  # what some families of models have, others not
        for name in chosen.ia3_inputs:
            if name not in usual and not any(_named(target.module, (name,)) for target in found):
                last = sorted({target.module.rpartition(".")[2] for target in found})
                raise SpecError(
                    msg(
                        "--ia3-input {name}: no trained layer has that name.{did_you_mean} Trained layers: {names}. Add it "
                        "with --target too.",
                        name=name,
                        did_you_mean=did_you_mean(name, last),
                        names=", ".join(last),
                    )
                )
        targets = (
            Target(target.module, target.in_features, 0)
            if _named(target.module, chosen.ia3_inputs)
            else Target(target.module, 0, target.out_features)
            for target in found
        )
        return AdapterPlan(method, self.key, chosen, tuple(targets))

    def lr_factor(self, settings: Settings) -> float:
        """A step moves a factor by at most the learning rate, and a change of a thousandth has no effect."""
        return 10.0

    def shapes(self, plan: AdapterPlan) -> dict[str, tuple[int, ...]]:
        """As many parameters per target as the scaled side is wide."""
        return {
            PREFIX + t.module + VECTOR: (1, t.in_features) if t.in_features else (t.out_features, 1)
            for t in plan.targets
        }

    def saved_activations(self, plan: AdapterPlan) -> float:
        """The scaled vectors."""
        return sum(target.in_features + target.out_features for target in plan.targets)

    def initial(self, plan: AdapterPlan, seed: int, source: Source) -> Mapping[str, Array]:
        """Ones, so the output is unchanged."""
        return {name: np.ones(shape, np.float32) for name, shape in self.shapes(plan).items()}

    def fits(self, target: Target, shape: tuple[int, ...]) -> bool:
        """Only the recorded side is compared."""
        return len(shape) == 2 and target.out_features in (0, shape[0]) and target.in_features in (0, shape[1])

    def config(self, plan: AdapterPlan) -> dict[str, object]:
        """PEFT's IA3Config as JSON, with full module names."""
        return {
            "peft_type": "IA3",
            "task_type": "CAUSAL_LM",
            "inference_mode": True,
            "fan_in_fan_out": False,
            "target_modules": [target.module for target in plan.targets],
            "feedforward_modules": [target.module for target in plan.targets if target.in_features],
        }

    def read(self, config: PeftConfig, shapes: Mapping[str, tuple[int, ...]]) -> AdapterPlan:
        """From the tensors alone: a vector's shape says which side it scales."""
        if config.modules_to_save:
            raise AdapterError(msg("adapter_config.json uses 'modules_to_save', which this version cannot read."))
        targets = []
        for name, shape in sorted(shapes.items()):
            if not name.endswith(VECTOR) or len(shape) != 2 or 1 not in shape:
                raise AdapterError(
                    msg(
                        "{name} {shape} is not an IA³ vector of a linear layer. Copy the adapter again.",
                        name=name,
                        shape=shape,
                    )
                )
            module = name.removeprefix(PREFIX).removesuffix(VECTOR)
            targets.append(Target(module, 0, shape[0]) if shape[1] == 1 else Target(module, shape[1], 0))
        names = tuple(target.module for target in targets)
        check_inside(names, "IA³")
        inputs = tuple(target.module for target in targets if target.in_features)
        return AdapterPlan("ia3", self.key, Ia3Settings(targets=names, ia3_inputs=inputs), tuple(targets))

    def merge(self, name: str, weight: Array, plan: AdapterPlan, tensors: Mapping[str, Array]) -> Array:
        """Scales rows of W and the bias, or columns of W."""
        module, _, kind = name.rpartition(".")
        vector = tensors.get(PREFIX + module + VECTOR)
        if vector is None or kind not in ("weight", "bias"):
            return weight
        if kind == "weight":
            return cast(Array, (weight * vector).astype(np.float32))
        return cast(Array, (weight * vector[:, 0]).astype(np.float32)) if vector.shape[1] == 1 else weight


def _named(module: str, names: tuple[str, ...]) -> bool:
    return any(module == name or module.endswith("." + name) for name in names)


TUNER = Ia3()

PRESETS = (
    Preset(
        key="ia3",
        title="IA³",
        summary="Scales keys, values and the MLP's inner vector by learned factors: very few parameters, merges exactly.",
        paper="arXiv:2205.05638",
        defaults={"method.targets": ("k_proj", "v_proj", "down_proj")},
    ),
)
