"""Full fine-tuning: all or some of the base's own weights are trained; the adapter is those weights under their own names.

PEFT has no such type; on disk it is the same pair of files with OWN_TYPE (docs/methods.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Literal, cast

import numpy as np

from finetune_local.spec.plan import AdapterPlan, BaseInfo, Target
from finetune_local.spec.targets import (
    EMBEDDINGS,
    HEADS,
    InBlocks,
    block_of,
    parse_layers,
    saved_by_norms,
    saved_inputs,
)
from finetune_local.spec.tuners import PREFIX, Array, Preset, Source, Tuner
from finetune_local.system.errors import SpecError
from finetune_local.system.fields import Settings, setting
from finetune_local.system.messages import Message, msg

_CONSTANT = "rotary_emb.inv_freq"  # stored by some old files; computed, never trained
_NORM = re.compile(r"norm|(^|\.)ln_\w+\.")  # input_layernorm, q_norm, final_layer_norm, ln_f


class FullSettings(InBlocks):
    """Which of the base's weights are trained."""

    train_weights: Literal["all", "norms", "biases", "embeddings", "layers"] = setting(
        "all",
        help="Which of the base's weights: all, or only some; layers are those of the blocks.",
        group="method",
    )


class Full(Tuner):
    """Full fine-tuning. A target is one weight, named by its full name; 1-D weights (norms, biases) have in_features 0."""

    key = "full"
    trains_base = True
    settings = FullSettings

    def refusal(self, settings: Settings, precision: str) -> Message | None:
        """Quantised weights cannot be trained; norms and embeddings are never quantised."""
        chosen = cast(FullSettings, settings).train_weights
        if precision not in ("8-bit", "4-bit") or chosen in ("norms", "embeddings"):
            return None
        return msg(
            "it trains the base's own weights, which cannot be stored in {precision}. Use --precision bf16 or "
            "fp32, or --method qlora.",
            precision=precision,
        )

    def plan(self, method: str, settings: Settings, base: BaseInfo) -> AdapterPlan:
        """The selected weights. Raises SpecError if the base has none of the kind."""
        chosen = cast(FullSettings, settings)
        names = [name for name in sorted(base.weights) if not name.endswith(_CONSTANT)]
        found = [name for name in names if _is(name, chosen.train_weights)]
        if not found:
            others = [kind for kind in ("norms", "biases", "embeddings") if any(_is(name, kind) for name in names)]
            raise SpecError(
                msg(
                    "method '{method}' trains the {what} of a model, but this one has none. It has: {names}. Choose with "
                    "--train-weights.",
                    method=method,
                    what=chosen.train_weights,
                    names=", ".join(others) or "weights of other names",
                )
            )
        blocks = parse_layers(chosen.layers, 1 + max((block_of(name) or 0 for name in names), default=-1))
        if chosen.layers != "all":
            found = [name for name in found if block_of(name) in blocks]
        if not found:
            raise SpecError(
                msg(
                    "--layers {layers}: the {what} of this model are not in these blocks. Remove it.",
                    layers=chosen.layers,
                    what=chosen.train_weights,
                )
            )
        targets = tuple(_target(name, base.weights[name].shape) for name in found)
        return AdapterPlan(method, self.key, settings, targets)

    def lr_factor(self, settings: Settings) -> float:
        """1/10 for matrices. Norms and biases are few, and a step moves each by at most the learning rate."""
        return 5.0 if cast(FullSettings, settings).train_weights in ("norms", "biases") else 0.1

    def shapes(self, plan: AdapterPlan) -> dict[str, tuple[int, ...]]:
        """The shapes of the base's weights."""
        return {
            PREFIX + t.module: (t.out_features, t.in_features) if t.in_features else (t.out_features,)
            for t in plan.targets
        }

    def sharing_refusal(self, plan: AdapterPlan) -> Message | None:
        """Other adapters would train on weights that change."""
        return msg("it changes the weights that the other adapters are based on. Train it alone.")

    def saved_activations(self, plan: AdapterPlan) -> float:
        """Inputs of trained layers; biases and embeddings need none."""
        inside = [t for t in plan.targets if t.in_features and block_of(t.module) is not None]
        return saved_inputs(inside) + saved_by_norms(plan.targets)

    def initial(self, plan: AdapterPlan, seed: int, source: Source) -> Mapping[str, Array]:
        """The base's own values, loaded one at a time: all at once would be a second copy of the model in memory."""
        return _Own([PREFIX + target.module for target in plan.targets], source)

    def merge(self, name: str, weight: Array, plan: AdapterPlan, tensors: Mapping[str, Array]) -> Array:
        """The trained weight replaces the base's."""
        return tensors[PREFIX + name].astype(np.float32) if PREFIX + name in tensors else weight


class _Own(Mapping[str, Array]):
    """The base's weights under their names in an adapter file."""

    def __init__(self, names: list[str], source: Source) -> None:
        self._names, self._source = names, source

    def __getitem__(self, name: str) -> Array:
        return self._source.weight(name.removeprefix(PREFIX))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _is(name: str, kind: str) -> bool:
    """Whether a weight is of a kind that `train_weights` selects."""
    module, _, last = name.rpartition(".")
    if kind == "layers":
        return block_of(name) is not None
    if kind == "biases":
        return last == "bias"
    if kind == "norms":
        return _NORM.search(module.rpartition(".")[2] + ".") is not None
    if kind == "embeddings":
        return block_of(name) is None and module.rpartition(".")[2] in (*EMBEDDINGS, *HEADS)
    return True


def _target(name: str, shape: tuple[int, ...]) -> Target:
    return Target(name, shape[1] if len(shape) > 1 else 0, shape[0])


TUNER = Full()

PRESETS = (
    Preset(
        key="full",
        title="Full fine-tuning",
        summary="Trains every weight; needs about 16 bytes of memory per parameter.",
        paper="",
        recommended=4,
        estimated=("fp32", "bf16"),
    ),
    Preset(
        key="last-layers",
        title="Last layers",
        summary="Trains all weights of the last blocks; there is no backward pass below them, so steps are fast.",
        paper="",
        defaults={"method.train_weights": "layers", "method.layers": "last:2"},
    ),
    Preset(
        key="norms",
        title="Norms",
        summary="Trains only the factors of the layer norms; works on a 4-bit base too.",
        paper="arXiv:2312.11420",
        defaults={"method.train_weights": "norms"},
    ),
)
