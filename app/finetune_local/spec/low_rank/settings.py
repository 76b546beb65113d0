"""Settings of low-rank updates, and the rank, alpha and scale they resolve to for each module."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import model_validator

from finetune_local.spec.low_rank import patterns
from finetune_local.spec.targets import AtLinear
from finetune_local.system.fields import setting
from finetune_local.system.messages import msg

SMALLEST_NORM = 1e-15
"""Lower bound on a row norm in DoRA: rows of zeros, found in pruned models, would be 0/0 and so stay zero."""


class UpdateSettings(AtLinear):
    """Settings common to all updates of linear layers."""

    alpha: float | None = setting(
        None,
        help="Strength of the update: it is scaled by alpha/rank. Automatic: twice the rank.",
        group="method",
        gt=0,
    )
    dropout: float = setting(
        0.0, help="Probability that an input of the update is zeroed in training.", group="method", ge=0, lt=1
    )


class LowRankSettings(UpdateSettings):
    """Settings of LoRA and its variants."""

    rank: int = setting(16, help="Width of the low-rank update.", group="method", ge=1, le=65536)
    rank_pattern: tuple[str, ...] = setting(
        (),
        help="A different rank for some layers, such as q_proj=8 or layers.0.mlp.up_proj=32 (repeatable).",
        group="method",
        metavar="NAME=RANK",
    )
    alpha_pattern: tuple[str, ...] = setting(
        (),
        help="A different alpha for some layers, as in --rank-pattern (repeatable).",
        group="method",
        metavar="NAME=ALPHA",
    )
    scaling: Literal["standard", "rslora"] = setting(
        "standard", help="alpha/rank, or rsLoRA's alpha/√rank, which suits high ranks.", group="method"
    )
    use_dora: bool = setting(
        False, help="Train magnitude and direction separately (DoRA).", group="method", flag="--use-dora"
    )
    start: Literal["default", "gaussian", "pissa", "olora", "loftq"] = setting(
        "default",
        help="Initial A and B: random and zero, or from the weights; loftq: from the quantisation error.",
        group="method",
        flag="--init",
    )
    freeze_a: bool = setting(
        False, help="Train only B (LoRA-FA): less memory for activations.", group="method", flag="--freeze-a"
    )
    b_rate_ratio: float = setting(
        1.0,
        help="B's learning rate as a multiple of A's (16 in LoRA+); magnitudes and biases use B's.",
        group="method",
        gt=0,
    )
    embedding_rate_ratio: float = setting(
        1.0, help="Learning rate of an adapted embedding as a multiple of A's.", group="method", gt=0
    )
    train_bias: Literal["none", "all", "lora-only"] = setting(
        "none", help="Also train the base's biases: all, or those of the adapted layers.", group="method"
    )

    also_train: tuple[Literal["embeddings", "norms"], ...] = setting(
        (),
        help="Also train full copies of these, as in LongLoRA: embeddings, norms (repeatable).",
        group="method",
        metavar="WHAT",
    )
    also_train_rate: float = setting(
        0.1, help="Learning rate of --also-train's copies as a multiple of A's.", group="method", gt=0
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        patterns.check(self.rank_pattern, "--rank-pattern", True)
        patterns.check(self.alpha_pattern, "--alpha-pattern", False)
        if not self.also_train and self.also_train_rate != type(self).model_fields["also_train_rate"].default:
            raise ValueError(
                msg("--also-train-rate: nothing is trained in full. Add --also-train norms, or remove it.")
            )
        if self.from_weights and self.dropout:
            raise ValueError(
                msg(
                    "--dropout {dropout} cannot be combined with --init {start}: it would drop a part of the base's "
                    "weights, not of their change. Use only one of them.",
                    dropout=f"{self.dropout:g}",
                    start=self.start,
                )
            )
        return self

    @property
    def from_weights(self) -> bool:
        """Whether A and B are initialised from W, with their initial product subtracted."""
        return self.start in ("pissa", "olora")

    @property
    def effective_alpha(self) -> float:
        """alpha without patterns; automatic: twice the rank."""
        return 2.0 * self.rank if self.alpha is None else self.alpha

    @property
    def scale(self) -> float:
        """The factor s of s·B·A without patterns."""
        return self.effective_alpha / (math.sqrt(self.rank) if self.scaling == "rslora" else self.rank)

    def rank_of(self, module: str) -> int:
        """The module's rank."""
        found = patterns.number_of(self.rank_pattern, module)
        return self.rank if found is None else int(found)

    def alpha_of(self, module: str) -> float:
        """The module's alpha; automatic: twice its rank."""
        found = patterns.number_of(self.alpha_pattern, module)
        if found is not None:
            return found
        return 2.0 * self.rank_of(module) if self.alpha is None else self.alpha

    def scale_of(self, module: str) -> float:
        """The module's factor s of s·B·A."""
        rank = self.rank_of(module)
        return self.alpha_of(module) / (math.sqrt(rank) if self.scaling == "rslora" else rank)

    def doubled(self) -> Self:
        """The settings of a folded PiSSA or OLoRA: twice the rank, the same scales, the default initialisation."""
        factor = math.sqrt(2.0) if self.scaling == "rslora" else 2.0
        alphas = patterns.as_mapping(self.alpha_pattern)
        if self.alpha is None:  # automatic alphas of layers with another rank
            ranks = patterns.as_mapping(self.rank_pattern)
            alphas |= {name: 2.0 * rank for name, rank in ranks.items() if name not in alphas}
        return self.model_copy(
            update={
                "start": "default",
                "rank": 2 * self.rank,
                "rank_pattern": patterns.times(self.rank_pattern, 2),
                "alpha": factor * self.effective_alpha,
                "alpha_pattern": patterns.times(patterns.from_mapping(alphas), factor),
            }
        )
