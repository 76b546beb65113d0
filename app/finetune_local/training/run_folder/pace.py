"""How long a training will take: by what this machine did before, or else by its arithmetic.

A token of training costs about 4 floating-point operations for each weight of the blocks where the base stays as it is (2 forward,
2 backward to the activations), and 6 where its own weights are trained (2 more for their gradients); once more 2 with gradient
checkpointing. (Kaplan et al. 2020, arXiv:2001.08361, section 2.1, counts the 6.) What a machine reaches of its peak differs, so
a run of the same model here counts for more than any formula, and a first guess is called rough.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

REACHED = 0.6
"""Share of a processor's matrix speed that training reaches; measured on CPUs from 0.5 to 0.7."""

BF16_GAIN = 1.8
"""How much faster than fp32 a CPU that is fast at bf16 trains; measured from 1.5 to 2.1."""

Basis = Literal["same", "similar", "rough", "unknown"]


@dataclass(frozen=True)
class Work:
    """What makes two trainings comparable."""

    model: str
    parameters: int
    backend: str
    precision: str
    whole: bool
    """Whether the base's own weights are trained."""
    checkpointing: bool = False

    @property
    def operations(self) -> float:
        """Floating-point operations of a token."""
        return self.parameters * ((6 if self.whole else 4) + (2 if self.checkpointing else 0))


@dataclass(frozen=True)
class Pace:
    """Tokens per second, and what that rests on: a run of the same kind, one of another model, or arithmetic."""

    tokens_per_second: float
    basis: Basis
    run: str = ""


def pace(work: Work, before: Iterable[tuple[Work, float, str]], flops: float | None, fast_bf16: bool) -> Pace:
    """The pace to expect. `before` are earlier runs here, newest first: (work, tokens per second, name); `flops` what the
    processor's fp32 matrix products reach per second, where that was measured."""
    nearest: tuple[float, Pace] | None = None
    for other, speed, name in before:
        if other.backend != work.backend or other.precision != work.precision or speed <= 0:
            continue
        scaled = speed * other.operations / max(1.0, work.operations)
        same = other.model == work.model and other.whole == work.whole
        distance = abs(other.operations / max(1.0, work.operations) - 1) + (0 if same else 1)
        if nearest is None or distance < nearest[0]:
            nearest = distance, Pace(scaled, "same" if same else "similar", name)
    if nearest is not None:
        return nearest[1]
    if not flops:
        return Pace(0.0, "unknown")
    gain = BF16_GAIN if fast_bf16 and work.precision == "bf16" else 1.0
    return Pace(REACHED * gain * flops / max(1.0, work.operations), "rough")


def work_of_run(facts: Mapping[str, Any], parameters: Mapping[str, int]) -> tuple[Work, float, str] | None:
    """A finished run's work and pace from its facts (training/run_folder/facts.py); None where it has too little to tell."""
    seconds, tokens, model = facts.get("seconds"), facts.get("trained_tokens"), str(facts.get("model"))
    if not seconds or not tokens or (facts.get("steps") or 0) < 3 or model not in parameters:
        return None
    whole = (facts.get("trainable_parameters") or 0) > parameters[model] // 2
    work = Work(model, parameters[model], str(facts.get("backend")), str(facts.get("precision") or ""), whole)
    return work, tokens / seconds, str(facts["run"])
