"""Whether a model can be trained in a memory: each way of holding the base, with each usual method, a verdict and its reason.

What the user leaves open is taken as a run takes it: a micro-batch of 1024 tokens, and gradient checkpointing where memory is
short without it (spec/defaults.py).
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
"""Method and precision of the base. A quantised base cannot be trained whole."""


@dataclass(frozen=True)
class Fit:
    """One way to train a model, and whether it fits into `memory_bytes`. `checkpointing`: only with activations computed again."""

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
        """The numbers behind it, as a sentence."""
        parts = self.needs
        return (
            f"{self.method} with a base in {self.precision} needs {_size(parts.total)}: weights {_size(parts.weights)}, "
            f"adapter and gradients {_size(parts.trainable)}, optimizer {_size(parts.optimizer)}, "
            f"activations {_size(parts.activations)}{' (computed again to save memory)' if self.checkpointing else ''}, "
            f"the program {_size(parts.runtime)}. The device has {_size(self.memory_bytes)}: {self.verdict}."
        )


def fits(model: Measured, kind: str, memory_bytes: int) -> tuple[Fit, ...]:
    """Every way that can be planned, in the order of WAYS; a model can be too narrow for the usual rank, or have no layer of the
    kind. `kind` is the device's: "cpu", "cuda" or "metal"."""
    info = model.info()
    plans: dict[str, AdapterPlan] = {}
    for key in dict.fromkeys(key for key, _ in WAYS):
        with suppress(SpecError):
            plans[key] = plan_method(parse_spec({"method": {"key": key}}, "fit").method, info)
    return tuple(_fit(model, plans[key], precision, kind, memory_bytes) for key, precision in WAYS if key in plans)


@lru_cache(maxsize=512)
def fits_shape(shape: Shape, kind: str, memory_bytes: int) -> tuple[Fit, ...]:
    """fits() of a shape, remembered: a list of models is drawn again and again."""
    return fits(shape, kind, memory_bytes)


@lru_cache(maxsize=512)
def shape_like(parameters: int, family: str = "") -> Shape:
    """A shape of about so many parameters: that of the nearest model of the catalogue (of this family, if there are any), scaled."""
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
