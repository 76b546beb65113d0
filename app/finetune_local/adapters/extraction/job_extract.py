"""Job kind: extract the change of a full fine-tune as a LoRA adapter.

The fine-tune is an adapter of full weights or a model folder; base and name are found automatically.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from finetune_local.adapters import library, manage
from finetune_local.adapters.extraction import extract as work
from finetune_local.adapters.extraction import tuned as sources
from finetune_local.adapters.extraction.extract import Extraction
from finetune_local.models.resolve import resolve
from finetune_local.runtime.kinds import JobKind, Reporter
from finetune_local.system.errors import SpecError
from finetune_local.system.messages import Progress, msg
from finetune_local.system.paths import Home, expanded
from finetune_local.system.private import share

N = TypeVar("N", int, float)


def run(arguments: Mapping[str, Any], home: Home, report: Reporter) -> Mapping[str, Any]:
    """`arguments`: those of ExtractionRequest that are plain JSON. The result is what `adapters extract --json` prints.

    Raises SpecError, AdapterError, ModelError, DiskFull.
    """
    options = dict(arguments)
    tuned = options.pop("tuned", None)
    targets = tuple(options.pop("targets", ("all-linear",)))
    request = ExtractionRequest(**options, targets=targets, tuned=Path(tuned) if tuned else None)
    name, done = extract(request, home, report)
    for text in done.notes:
        report.note(text)
    return {"name": name, **done.as_json()}


KIND = JobKind("extract", run, identity=lambda arguments: arguments.get("adapter"))


@dataclass(frozen=True)
class ExtractionRequest:
    """What to extract and how; None is automatic.

    Either `adapter`, trained with the method `full` (a run, a library name, a folder), or `tuned`, the folder of a tuned model, with
    `model` as its base. `name` is its name in the library, or `out` a folder outside. The rest are arguments of extract.extract().
    """

    adapter: str | None = None
    tuned: Path | None = None
    model: str | None = None
    name: str | None = None
    out: Path | None = None
    rank: int | None = None
    energy: float | None = None
    targets: tuple[str, ...] = ("all-linear",)
    layers: str = "all"


def extract(request: ExtractionRequest, home: Home, progress: Progress) -> tuple[str, Extraction]:
    """Extract it; returns the value for --adapter and the result.

    Raises SpecError (contradicting arguments), AdapterError, ModelError, DiskFull.
    """
    adapter, tuned = request.adapter, request.tuned
    if (adapter is None) == (tuned is None):
        raise SpecError(msg("pass either an adapter of method `full`, or --tuned with a fine-tuned model's folder."))
    if request.out is not None and request.name is not None:
        raise SpecError(msg("--name stores it in the library, --out in a folder outside it: use only one of them."))
    folder = library.find(adapter, home) if adapter is not None else None
    base_name = request.model or (library.base_of(folder) if folder is not None else None)
    if base_name is None:
        raise SpecError(msg("{tuned}: its base model is unknown. Name it with --model.", tuned=tuned or folder))
    base = resolve(base_name, home, progress).stretched(library.rope_factor_of(folder) if folder else 1.0)
    if folder is not None:
        source = sources.from_adapter(folder, base)
        if (known := _name_in_library(folder, home)) is not None:
            source = replace(source, name=known, lineage={**source.lineage, "adapter": known})
    else:
        assert tuned is not None
        source = sources.from_folder(tuned, base)
    called = request.name or f"{source.name}-lora"
    if request.out is None:
        manage.check_name(called, home)
    target = home.adapters / called if request.out is None else expanded(request.out).absolute()
    done = work.extract(
        base,
        source,
        target,
        rank=request.rank,
        energy=request.energy,
        targets=request.targets,
        layers=request.layers,
        progress=progress,
    )
    share(done.folder, home.root)
    return (called if request.out is None else str(done.folder)), done


def size(rank: str, energy: str) -> tuple[int | None, float | None]:
    """Rank and energy from typed text; None, automatic, for an empty one. Raises SpecError."""
    return _number("rank", rank, int), _number("energy", energy, float)


def _number(name: str, text: str, kind: type[N]) -> N | None:
    if not text.strip():
        return None
    try:
        return kind(text)
    except ValueError:
        what = msg("a whole number such as 16") if kind is int else msg("a share such as 0.9")
        raise SpecError(
            msg("--{name} is '{text}', but should be {what}.", name=name, text=text.strip(), what=what)
        ) from None


def _name_in_library(folder: Path, home: Home) -> str | None:
    return next((found.name for found in library.entries(home) if found.folder.resolve() == folder), None)
