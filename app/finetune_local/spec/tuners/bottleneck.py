"""Bottleneck adapters: down-projection, non-linearity, up-projection, after or beside attention and MLP.

Series (Houlsby et al. 2019, arXiv:1902.00751, section 2.1; Pfeiffer et al. 2020, arXiv:2005.00247, after the MLP only):
    h ← h + s·(f(h·Dᵀ + d)·Uᵀ + u)        h is the sublayer's output before the residual connection
Parallel (He et al. 2022, arXiv:2110.04366, section 4.2):
    h ← h + s·(f(x·Dᵀ + d)·Uᵀ + u)        x is the sublayer's input
Shapes: D (width, hidden), d (width,), U (hidden, width), u (hidden,). PEFT has no such type.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, cast

import numpy as np

from finetune_local.spec.initial import normal
from finetune_local.spec.plan import AdapterPlan, BaseInfo, Target, WeightInfo
from finetune_local.spec.targets import InBlocks, block_of, parse_layers
from finetune_local.spec.tuners import PREFIX, Array, Preset, Source, Tuner
from finetune_local.system.errors import SpecError
from finetune_local.system.fields import Settings, setting
from finetune_local.system.messages import Message, msg

DOWN, DOWN_BIAS = ".adapter_down.weight", ".adapter_down.bias"
UP, UP_BIAS = ".adapter_up.weight", ".adapter_up.bias"

ATTENTION = ("self_attn", "attention", "attn", "self_attention")
MLP = ("mlp", "feed_forward", "block_sparse_moe")
"""Names of these sublayers in known architectures."""


class BottleneckSettings(InBlocks):
    """Settings of bottleneck adapters."""

    adapter_width: int = setting(64, help="Width of the bottleneck.", group="method", ge=1, le=65536)
    adapter_activation: Literal["relu", "gelu", "silu", "tanh"] = setting(
        "relu", help="The bottleneck's non-linearity.", group="method"
    )
    adapter_scale: float = setting(
        1.0, help="Scale of a bottleneck's output; parallel ones are scaled up.", group="method", gt=0
    )
    adapter_placing: Literal["series", "parallel"] = setting(
        "series", help="Whether a bottleneck reads the sublayer's output or its input.", group="method"
    )
    adapter_sublayers: Literal["both", "attention", "mlp"] = setting(
        "both", help="Which sublayers of a block get a bottleneck.", group="method"
    )


class Bottleneck(Tuner):
    """Bottleneck adapters. A target is a sublayer; both its sizes are the width of the residual stream."""

    key = "bottleneck"
    settings = BottleneckSettings

    def plan(self, method: str, settings: Settings, base: BaseInfo) -> AdapterPlan:
        """One target per sublayer of the selected blocks."""
        chosen = cast(BottleneckSettings, settings)
        parts = _parts(base.weights)
        blocks = parse_layers(chosen.layers, 1 + max((block for block, _ in parts.values()), default=-1))
        names = {"both": ATTENTION + MLP, "attention": ATTENTION, "mlp": MLP}[chosen.adapter_sublayers]
        hidden = _hidden(base.weights)
        found = [module for module, (block, part) in parts.items() if part in names and block in blocks]
        kinds = {parts[module][1] for module in found}
        lacking = [
            word
            for word, known in (("attention", ATTENTION), ("mlp", MLP))
            if set(known) & set(names) and not kinds & set(known)
        ]
        if lacking or hidden is None:
            there = ", ".join(sorted({part for _, part in parts.values()})) or "none"
            raise SpecError(
                msg(
                    "method '{method}' adds a bottleneck at each block's {part}, but this model has no part with a known "
                    "name for it. The parts of its blocks are: {names}. Choose available ones with --adapter-sublayers, "
                    "or use --method lora, which works on any linear layer.",
                    method=method,
                    part=" and ".join(lacking) or "sublayers",
                    names=there,
                )
            )
        if chosen.adapter_width > hidden:
            raise SpecError(
                msg(
                    "--adapter-width is {width}, but this model is {hidden} wide: a bottleneck cannot be wider than the "
                    "model. Lower it to {hidden} or less.",
                    width=chosen.adapter_width,
                    hidden=hidden,
                )
            )
        return AdapterPlan(method, self.key, chosen, tuple(Target(module, hidden, hidden) for module in found))

    def lr_factor(self, settings: Settings) -> float:
        """Parallel adapters are scaled up, which already speeds them up."""
        return 2.0 if cast(BottleneckSettings, settings).adapter_placing == "series" else 1.0

    def shapes(self, plan: AdapterPlan) -> dict[str, tuple[int, ...]]:
        """2·hidden·width + hidden + width parameters per target."""
        width = cast(BottleneckSettings, plan.settings).adapter_width
        result: dict[str, tuple[int, ...]] = {}
        for target in plan.targets:
            name = PREFIX + target.module
            result[name + DOWN], result[name + DOWN_BIAS] = (width, target.in_features), (width,)
            result[name + UP], result[name + UP_BIAS] = (target.out_features, width), (target.out_features,)
        return result

    def saved_activations(self, plan: AdapterPlan) -> float:
        """The bottleneck's input, and its hidden vector before and after the non-linearity."""
        width = cast(BottleneckSettings, plan.settings).adapter_width
        return sum(target.in_features + 2 * width for target in plan.targets)

    def initial(self, plan: AdapterPlan, seed: int, source: Source) -> Mapping[str, Array]:
        """D from N(0, 1/hidden), everything else zero: the output is exactly unchanged, and U has gradients from the first step."""
        return {
            name: normal(seed, name, shape, 1 / math.sqrt(shape[-1]))
            if name.endswith(DOWN)
            else np.zeros(shape, np.float32)
            for name, shape in self.shapes(plan).items()
        }

    def merge_refusal(self, plan: AdapterPlan) -> Message | None:
        """Never mergeable: the base has no place for a non-linearity."""
        return msg(
            "a bottleneck adapter has a non-linearity between its matrices, and no weights of the base compute "
            "one there, so it cannot be merged. Keep it as an adapter, or train with --method lora to be able to "
            "merge."
        )


def _parts(weights: Mapping[str, WeightInfo]) -> dict[str, tuple[int, str]]:
    """The direct submodules of each block: dotted name -> (block number, last part of the name)."""
    found: dict[str, tuple[int, str]] = {}
    for name in weights:
        block = block_of(name)
        if block is None:
            continue
        stem, _, rest = name.partition(f".{block}.")
        part = rest.split(".")[0]
        found[f"{stem}.{block}.{part}"] = block, part
    return dict(sorted(found.items(), key=lambda item: (item[1][0], item[0])))


def _hidden(weights: Mapping[str, WeightInfo]) -> int | None:
    """Width of the residual stream: the size of a block's norm, else of the embedding."""
    for name, weight in weights.items():
        block = block_of(name)
        rest = "" if block is None else name.partition(f".{block}.")[2]
        if rest.count(".") == 1 and rest.endswith(".weight") and len(weight.shape) == 1:
            return weight.shape[0]
    tables = (w.shape[1] for n, w in weights.items() if n.endswith(("embed_tokens.weight", "wte.weight")))
    return next(tables, None)


TUNER = Bottleneck()

PRESETS = (
    Preset(
        key="adapter",
        title="Bottleneck adapters (Houlsby)",
        summary="Small non-linear layers after attention and MLP of each block; slower inference, cannot be merged.",
        paper="arXiv:1902.00751",
        defaults={"method.adapter_activation": "gelu"},
    ),
    Preset(
        key="adapter-pfeiffer",
        title="Bottleneck adapters (Pfeiffer)",
        summary="One small non-linear layer per block, after the MLP: half of Houlsby's cost.",
        paper="arXiv:2005.00247",
        defaults={"method.adapter_sublayers": "mlp"},
    ),
    Preset(
        key="parallel-adapter",
        title="Parallel adapters",
        summary="A small non-linear layer beside each MLP, scaled up; reads what the MLP reads.",
        paper="arXiv:2110.04366",
        defaults={"method.adapter_placing": "parallel", "method.adapter_sublayers": "mlp", "method.adapter_scale": 4.0},
    ),
)
