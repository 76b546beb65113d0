"""Delta extraction: a fully fine-tuned model's difference from its base, as a LoRA adapter of a chosen rank.

For each linear layer ΔW = W_tuned − W_base, and B·A is its best approximation of rank r: the truncated singular value decomposition
(Eckart and Young 1936, Psychometrika 1). The singular values are split evenly (B = U√S, A = √S·Vᵀ) and alpha is the rank, so that the
scale is 1. Numpy only, one layer in memory at a time. Changes of embeddings, norms and biases do not fit a low-rank adapter; they are
reported with their size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune_local.adapter_format import write_adapter
from finetune_local.adapters.extraction.tuned import Tuned
from finetune_local.adapters.identity import write_identity
from finetune_local.models.folder import ModelFolder
from finetune_local.spec.base.tokenizer_files import copy_brought
from finetune_local.spec.low_rank.init import decompose
from finetune_local.spec.low_rank.peft import A, B, known_plan
from finetune_local.spec.low_rank.settings import LowRankSettings
from finetune_local.spec.plan import Target
from finetune_local.spec.targets import block_of, linear_modules, select_linear
from finetune_local.spec.tuners import PREFIX, check_rank
from finetune_local.system import checksums
from finetune_local.system.errors import AdapterError, ModelError, SpecError
from finetune_local.system.fields import parse
from finetune_local.system.files import written_aside
from finetune_local.system.messages import Message, Progress, msg

DEFAULT_RANK = 16
ADVICE = msg("Free some space on it, or choose another location with --out.")
WEIGHT = ".weight"
_ROUNDING = 1e-12  # fraction of the squared change below fp64's resolution

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Layer:
    """One extracted layer. `change` is ‖ΔW‖ (Frobenius), `relative` that over ‖W‖, `error` ‖ΔW − B·A‖/‖ΔW‖."""

    module: str
    rank: int
    change: float
    relative: float
    error: float

    @property
    def kept(self) -> float:
        """Fraction of the squared change the adapter keeps."""
        return 1.0 - self.error**2


@dataclass(frozen=True)
class Left:
    """A changed weight that is not in the adapter; `kind` is embedding, head, norm, bias, linear or other."""

    name: str
    kind: str
    change: float
    relative: float


@dataclass(frozen=True)
class Extraction:
    """What was written, and how closely it approximates the change."""

    folder: Path
    base: str
    source: Mapping[str, Any]
    rank: int
    energy: float | None
    parameters: int
    layers: tuple[Layer, ...]
    unchanged: tuple[str, ...]
    left: tuple[Left, ...]
    notes: tuple[str, ...]

    @property
    def error(self) -> float:
        """‖ΔW − B·A‖/‖ΔW‖ over all extracted layers together."""
        return _overall(self.layers)

    def as_json(self) -> dict[str, Any]:
        """What `adapters extract --json` prints."""
        return {
            "folder": str(self.folder),
            "base": self.base,
            "source": dict(self.source),
            "rank": self.rank,
            "energy": self.energy,
            "parameters": self.parameters,
            "error": self.error,
            "kept": 1.0 - self.error**2,
            "layers": [{**vars(layer), "kept": layer.kept} for layer in self.layers],
            "unchanged": list(self.unchanged),
            "not_carried": [vars(left) for left in self.left],
            "notes": list(self.notes),
        }


def extract(
    base: ModelFolder,
    tuned: Tuned,
    out: Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    targets: Sequence[str] = ("all-linear",),
    layers: str = "all",
    progress: Progress = lambda _what, _done: None,
) -> Extraction:
    """Write the adapter folder `out`, which must not exist.

    Every layer has the same rank: `rank` (16 by default), or the smallest one with which each layer keeps the fraction `energy` of its
    squared change. Raises SpecError (impossible target or rank), AdapterError (nothing changed, or nothing an adapter can represent),
    ModelError, DiskFull.
    """
    if rank is not None and energy is not None:
        raise SpecError(msg("--rank and --energy are both set, but --energy determines the rank. Use only one."))
    if energy is not None and not 0 < energy <= 1:
        raise SpecError(msg("--energy is {energy}, but must be a share: above 0, at most 1.", energy=f"{energy:g}"))
    if out.exists():
        raise AdapterError(
            msg("{path} already exists. Choose another location with --out, or another --name.", path=out)
        )
    chosen = select_linear(base.weights(), tuple(targets), layers)
    there = [target for target in chosen if target.module + WEIGHT in tuned.weights]
    if energy is None:
        rank = DEFAULT_RANK if rank is None else rank
        parse(LowRankSettings, {"rank": rank}, "--rank")
        for target in sorted(there, key=_smaller):
            check_rank(rank, target)
    else:
        rank = _rank_for(energy, base, tuned, there, progress)
    found, kept, tensors = _factors(base, tuned, there, rank, progress)
    left = tuple(_left(base, tuned, {target.module for target in kept}))
    if not kept:
        raise AdapterError(_nothing(base, tuned, left))
    names = tuple(target.module for target in kept)
    settings = parse(LowRankSettings, {"rank": rank, "alpha": rank, "targets": names}, "--energy")
    plan = known_plan(settings, tuple(kept))
    parameters = sum(tensor.size for tensor in tensors.values())
    lineage = {**tuned.lineage, "rank": rank, "energy": energy, "error": _overall(found)}
    with written_aside(out, ADVICE) as place:
        write_adapter(place, plan, tensors, base.name)
        if tuned.beside is not None:
            copy_brought(tuned.beside, place)
        extra = {"method": plan.method, "parameters": parameters, "extracted_from": lineage}
        write_identity(place, base.identity(), tuned.run, extra)
        checksums.write(place)
    unchanged = tuple(t.module for t in chosen if t not in kept)
    return Extraction(
        out, base.name, tuned.lineage, rank, energy, parameters, tuple(found), unchanged, left, tuned.notes
    )


def _factors(
    base: ModelFolder, tuned: Tuned, targets: Sequence[Target], rank: int, progress: Progress
) -> tuple[list[Layer], list[Target], dict[str, npt.NDArray[np.float32]]]:
    """Decompose the change of each target; unchanged ones are left out. Returns facts, targets and tensors by their names on disk."""
    found: list[Layer] = []
    kept: list[Target] = []
    tensors: dict[str, npt.NDArray[np.float32]] = {}
    for number, target in enumerate(targets):
        progress(msg("extracting"), number / len(targets))
        weight, delta = _change(base, tuned, target.module + WEIGHT)
        if not (size := float(np.linalg.norm(delta))):
            continue
        b, a = decompose(delta, rank)
        error = float(np.linalg.norm(delta - b.astype(np.float64) @ a.astype(np.float64))) / size
        found.append(Layer(target.module, rank, size, size / _norm(weight), error))
        tensors |= {PREFIX + target.module + A: a, PREFIX + target.module + B: b}
        kept.append(target)
    return found, kept, tensors


def spectrum(delta: Doubles) -> Doubles:
    """The squared singular values, largest first."""
    wide = delta.T if delta.shape[0] > delta.shape[1] else delta
    return np.clip(np.linalg.eigvalsh(wide @ wide.T)[::-1], 0.0, None)


def rank_for(squares: Doubles, energy: float) -> int:
    """The smallest rank whose squared singular values sum to the fraction `energy` of all of them."""
    missing = squares.sum() - np.cumsum(squares)
    return int(np.argmax(missing <= (1.0 - energy + _ROUNDING) * squares.sum())) + 1


def _rank_for(energy: float, base: ModelFolder, tuned: Tuned, targets: Sequence[Target], progress: Progress) -> int:
    """The largest rank any layer needs, at least 1. Raises SpecError if a smaller layer cannot have it."""
    needed, neediest, spectra = 1, "", []
    for number, target in enumerate(targets):
        progress(msg("measuring"), number / len(targets))
        squares = spectrum(_change(base, tuned, target.module + WEIGHT)[1])
        if squares.sum() > 0:
            spectra.append((target, squares))
            if (rank := rank_for(squares, energy)) > needed:
                needed, neediest = rank, target.module
    smallest = min((target for target, _ in spectra), key=_smaller, default=None)
    if smallest is not None and needed > (limit := _smaller(smallest)):
        reached = min(float(squares[:limit].sum() / squares.sum()) for _, squares in spectra)
        raise SpecError(
            msg(
                "--energy {energy} needs rank {rank} in {layer}, but all layers share one rank and {module} is "
                "{rows} × {columns}. Rank {rank2} keeps {share} in every layer: choose less than that, or exclude "
                "the small layers with --target.",
                energy=f"{energy:g}",
                rank=needed,
                layer=neediest,
                module=smallest.module,
                rows=smallest.out_features,
                columns=smallest.in_features,
                rank2=limit,
                share=f"{reached:.4g}",
            )
        )
    return needed


def _smaller(target: Target) -> int:
    """The highest possible rank of a matrix."""
    return min(target.in_features, target.out_features)


def _change(base: ModelFolder, tuned: Tuned, name: str) -> tuple[npt.NDArray[np.float32], Doubles]:
    """The base's weight and its change. Raises ModelError if the change is not finite."""
    weight = base.read(name)
    delta = np.subtract(tuned.read(name), weight, dtype=np.float64)
    if not np.isfinite(delta).all():
        raise ModelError(
            msg(
                "{name}: {name2} contains NaN or infinite values. Its training diverged, or a file is damaged: use "
                "an earlier state.",
                name=tuned.name,
                name2=name,
            )
        )
    return weight, delta


def _left(base: ModelFolder, tuned: Tuned, carried: set[str]) -> list[Left]:
    """All other changed weights, most changed first."""
    linear = linear_modules(base.weights())
    found = []
    for name in tuned.weights:
        module = name.removesuffix(WEIGHT)
        if module in carried or name not in base.weights():
            continue
        weight, delta = _change(base, tuned, name)
        if size := float(np.linalg.norm(delta)):
            found.append(Left(name, "linear" if module in linear else _kind(name), size, size / _norm(weight)))
    return sorted(found, key=lambda left: -left.relative)


def _kind(name: str) -> str:
    if name.endswith(".bias"):
        return "bias"
    if "norm" in name or ".ln_" in name:
        return "norm"
    if block_of(name) is None:
        return "head" if "lm_head" in name else "embedding" if "emb" in name or "wte" in name else "other"
    return "other"


def _nothing(base: ModelFolder, tuned: Tuned, left: Sequence[Left]) -> Message:
    if not left:
        return msg(
            "every weight of {model} equals '{base}', so there is no change to extract. Pass the fine-tuned "
            "model, and its base with --model.",
            model=tuned.name,
            base=base.name,
        )
    return msg(
        "none of the selected layers of {model} changed. Changed were: {kinds} ({number} weights, most of "
        "all {name}). A low-rank adapter covers linear layers in the blocks: choose others with --target and "
        "--layers, or keep the full adapter.",
        model=tuned.name,
        kinds=", ".join(sorted({x.kind for x in left})),
        number=len(left),
        name=left[0].name,
    )


def _overall(layers: Sequence[Layer]) -> float:
    total = sum(layer.change**2 for layer in layers)
    return float(np.sqrt(sum((layer.error * layer.change) ** 2 for layer in layers) / total))


def _norm(weight: npt.NDArray[np.float32]) -> float:
    """‖W‖, never zero, so that a weight that was zero has a finite relative change."""
    return float(np.linalg.norm(weight.astype(np.float64))) or 1.0
