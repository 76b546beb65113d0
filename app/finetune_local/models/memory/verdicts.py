"""Whether a model can be trained in a given memory: a verdict with reasons for each precision and usual method.

Open settings resolve as in a run: micro-batches of 1024 tokens, and gradient checkpointing if memory is short without it
(spec/defaults.py).
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from finetune_local.models.catalog import catalog
from finetune_local.models.memory.estimate import Estimate, estimate, verdict
from finetune_local.models.memory.shape import Measured, Shape
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.run import Precision, parse_spec, plan_method
from finetune_local.system.errors import SpecError

Word = Literal["fits", "tight", "too big"]

WAYS: tuple[tuple[str, Precision], ...] = (
    ("lora", "fp32"),
    ("lora", "bf16"),
    ("lora", "8-bit"),
    ("qlora", "4-bit"),
    ("full", "fp32"),
    ("full", "bf16"),
)
"""Pairs of method and precision. Full fine-tuning does not exist on a quantised base."""


@dataclass(frozen=True)
class Fit:
    """One way to train a model, judged against `memory_bytes`. `checkpointing`: only with gradient checkpointing."""

    method: str
    precision: Precision
    needs: Estimate
    memory_bytes: int
    checkpointing: bool

    @property
    def verdict(self) -> Word:
        """ "fits", "tight" or "too big"."""
        return verdict(self.needs, self.memory_bytes)

    @property
    def reason(self) -> str:
        """The numbers behind the verdict, as a sentence."""
        parts = self.needs
        return (
            f"{self.method} with a base in {self.precision} needs {_size(parts.total)}: weights {_size(parts.weights)}, "
            f"adapter and gradients {_size(parts.trainable)}, optimizer {_size(parts.optimizer)}, "
            f"activations {_size(parts.activations)}{' (computed again to save memory)' if self.checkpointing else ''}, "
            f"the program {_size(parts.runtime)}. The device has {_size(self.memory_bytes)}: {self.verdict}."
        )


def fits(model: Measured, kind: str, memory_bytes: int) -> tuple[Fit, ...]:
    """Every way that can be planned, in the order of WAYS; a model may be too narrow for the default rank, or lack the layers.
    `kind` is the device's: "cpu", "cuda" or "metal".
    """
    info = model.info()
    plans: dict[str, AdapterPlan] = {}
    for key in dict.fromkeys(key for key, _ in WAYS):
        with suppress(SpecError):
            plans[key] = plan_method(parse_spec({"method": {"key": key}}, "fit").method, info)
    return tuple(_fit(model, plans[key], precision, kind, memory_bytes) for key, precision in WAYS if key in plans)


@lru_cache(maxsize=512)
def fits_shape(shape: Shape, kind: str, memory_bytes: int) -> tuple[Fit, ...]:
    """fits() of a shape, cached: lists of models are redrawn often."""
    return fits(shape, kind, memory_bytes)


@lru_cache(maxsize=512)
def shape_like(parameters: int, family: str = "") -> Shape:
    """A shape of about this many parameters, scaled from the nearest catalogue model (of this architecture, if there is one)."""
    known = [entry for entry in catalog() if entry.family == family] or list(catalog())
    nearest = min(known, key=lambda entry: max(entry.parameters, parameters) / min(entry.parameters, parameters))
    return nearest.shape.scaled(parameters)


def _fit(model: Measured, plan: AdapterPlan, precision: Precision, kind: str, memory_bytes: int) -> Fit:
    for checkpointing in (False, True):
        tables = {
            "method": {"key": plan.method},
            "model": {"precision": precision},
            "training": {"gradient_checkpointing": checkpointing},
        }
        needs = estimate(model, parse_spec(tables, "fit"), plan, kind)
        if verdict(needs, memory_bytes) == "fits":
            break
    return Fit(plan.method, precision, needs, memory_bytes, checkpointing)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
