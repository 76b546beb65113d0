"""Automatic values: what None resolves to once data and machine are known. Each choice carries its reason."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune_local.spec.numerics.shifted import automatic_group
from finetune_local.spec.run import Goal, Precision, RunSpec
from finetune_local.spec.tuners import preset_named, tuners
from finetune_local.system.messages import Message, msg

COMFORTABLE = 0.8
"""Share of the device's memory that automatic values plan with."""


LENGTHS: Mapping[Goal, float] = {"quick": 1 / 3, "balanced": 1.0, "thorough": 2.0}
"""Epochs by goal, as a multiple of the usual number."""

PATIENCE = 4
"""Validations without a better loss before a thorough run stops."""


@dataclass(frozen=True)
class Facts:
    """Inputs of the automatic values. Lengths are in tokens, of the encoded training rows.

    `fixed_bytes` is the estimated memory of weights and optimizer; `activation_bytes` that of the activations of 1024 tokens
    without gradient checkpointing (models/memory/estimate.py).
    """

    device: str
    memory_bytes: int
    hidden_size: int
    fixed_bytes: int
    activation_bytes: int
    rows: int
    longest: int
    validation_rows: int = 0
    rows_per_example: int = 1

    @property
    def largest(self) -> int:
        """Tokens of the largest example with its padding; a micro-batch contains at least one example."""
        return self.longest * self.rows_per_example


@dataclass(frozen=True)
class Choice:
    """One automatic value, for printing: `training.batch_size = 8 (…)`."""

    setting: str
    value: object
    reason: Message


def precision(spec: RunSpec, device: str, fast_bf16: bool) -> tuple[Precision, Message]:
    """The base's precision if the spec leaves it open."""
    if spec.model.precision is not None:
        return spec.model.precision, msg("as requested")
    if tuners()[preset_named(spec.method.key).tuner].trains_base and device == "cpu":
        return "fp32", msg("the base's own weights are trained; bf16 would round them in every multiplication")
    if fast_bf16:
        return "bf16", msg("fastest on this device, with half the memory; --precision fp32 is more exact")
    return "fp32", msg("this device has no fast bf16")


def max_length(spec: RunSpec, context: int) -> tuple[int, Message]:
    """The maximum row length if the spec leaves it open."""
    if spec.data.max_length is not None:
        return spec.data.max_length, msg("as requested")
    limit = min(context, 2048)
    return limit, (
        msg("the model's context") if limit == context else msg("enough for most chats; raise it for long texts")
    )


def resolve(spec: RunSpec, facts: Facts) -> tuple[RunSpec, list[Choice]]:
    """The spec with every automatic value filled in, and the list of choices made."""
    training = spec.training
    chosen: list[Choice] = []

    def choose(name: str, value: Any, reason: Message) -> Any:
        given = getattr(training, name)
        if given is not None:
            return given
        chosen.append(Choice(f"training.{name}", value, reason))
        return value

    batch_size = choose(
        "batch_size",
        4 if facts.rows < 64 else 8 if facts.rows < 4000 else 16,
        msg("for {rows} rows", rows=facts.rows),
    )
    per_epoch = math.ceil(facts.rows / batch_size)
    epochs = training.epochs
    if training.max_steps is None:
        few = max(3, min(10, math.ceil(60 / per_epoch)))
        usual = few if facts.rows < 5000 else 2 if facts.rows < 20000 else 1
        aimed = "" if spec.goal == "balanced" else msg("; --goal {goal}", goal=spec.goal)
        epochs = choose(
            "epochs", usual * LENGTHS[spec.goal], msg("{per_epoch} steps each{aimed}", per_epoch=per_epoch, aimed=aimed)
        )
    steps = training.max_steps or max(1, math.ceil((epochs or 1) * per_epoch))
    small = getattr(spec.method.settings, "train_weights", "all") in ("norms", "biases")
    heavy = tuners()[preset_named(spec.method.key).tuner].trains_base and not small
    resolved = {
        "epochs": epochs,
        "max_steps": choose(
            "max_steps", steps, msg("{epochs} epochs of {steps}", epochs=f"{epochs:g}", steps=per_epoch)
        )
        if epochs
        else steps,
        "batch_size": batch_size,
        "learning_rate": choose("learning_rate", *_learning_rate(spec, facts)),
        "micro_batch_tokens": choose("micro_batch_tokens", *_micro_batch_tokens(facts)),
        "gradient_checkpointing": choose("gradient_checkpointing", *_checkpointing(facts)),
        "attention_group": choose(
            "attention_group", automatic_group(facts.longest), msg("a quarter of the longest row")
        )
        if training.attention == "shifted"
        else training.attention_group,
        "early_stopping": choose(
            "early_stopping", PATIENCE, msg("--goal thorough: steps after the best checkpoint are not used")
        )
        if spec.goal == "thorough" and facts.validation_rows
        else training.early_stopping,
        "validate_every": choose("validate_every", *_validations(spec, steps)),
        "checkpoint_every": choose(
            "checkpoint_every",
            max(1, math.ceil(steps / 4)) if heavy else max(1, min(50, math.ceil(steps / 10))),
            msg("at most that many steps are lost by a crash"),
        ),
    }
    return spec.model_copy(update={"training": training.model_copy(update=resolved)}), chosen


def _learning_rate(spec: RunSpec, facts: Facts) -> tuple[float, Message]:
    """The peak learning rate: LoRA's for this width, times the tuner's and the objective's factors.

    Low-rank updates need about ten times the rate of full fine-tuning, and small models more than large ones: the fit over
    models of 1 to 70 B of Schulman et al. 2025 ("LoRA Without Regret"), 5e-5·10·(2000/hidden)^0.78.
    """
    preset, objective = preset_named(spec.method.key), spec.objective.objective
    factor = tuners()[preset.tuner].lr_factor(spec.method.settings) * objective.lr_factor
    rate = min(5e-4 * (2000 / max(1, facts.hidden_size)) ** 0.78, 2e-3) * factor
    titles = preset.title if objective.lr_factor == 1 else f"{preset.title}, {objective.title}"
    return float(f"{rate:.1e}"), msg("{method}, {width} wide", method=titles, width=facts.hidden_size)


def _validations(spec: RunSpec, steps: int) -> tuple[int, Message]:
    times, count = (12, msg("twelve")) if spec.goal == "thorough" else (5, msg("five"))
    return max(1, math.ceil(steps / times)), msg("{times} times in the run", times=count)


def _micro_batch_tokens(facts: Facts) -> tuple[int, Message]:
    if facts.device == "cpu":
        return max(1024, facts.largest), msg("fills the CPU's caches; more would only use memory")
    room = int(facts.memory_bytes * COMFORTABLE) - facts.fixed_bytes
    thousands = max(1, min(16, room // max(1, facts.activation_bytes)))
    return max(facts.largest, 1024 * thousands), msg("by the device's memory")


def _checkpointing(facts: Facts) -> tuple[bool, Message]:
    needed = facts.fixed_bytes + facts.activation_bytes * max(1024, facts.largest) // 1024
    tight = needed > facts.memory_bytes * COMFORTABLE
    return tight, (msg("memory is short") if tight else msg("there is memory to spare"))
