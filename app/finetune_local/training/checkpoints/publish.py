"""A run's result: its `adapter/`, made of the weights in training or of a checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from finetune_local.adapter_format import read_adapter, read_config, write_adapter
from finetune_local.adapters.identity import FILE as IDENTITY
from finetune_local.spec.base.tokenizer_files import copy_brought
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.tuners import Array
from finetune_local.spec.value_head import folded
from finetune_local.system import checksums
from finetune_local.system.files import written_aside
from finetune_local.training.checkpoints.checkpoint import RESUME
from finetune_local.training.run_folder.runs import Run


def publish(
    run: Run, plan: AdapterPlan, tensors: Mapping[str, Array], base: str, identify: Callable[[Path], None]
) -> None:
    """Write an adapter as others get it, in place of the one that is there; `identify` adds the base's identity. Raises DiskFailed."""
    with written_aside(run.adapter, RESUME) as place:
        new_plan, made = folded(plan, tensors)
        write_adapter(place, new_plan, made, base)
        copy_brought(run.tokenizer, place)
        identify(place)
        checksums.write(place)


def publish_checkpoint(run: Run, source: Path, plan: AdapterPlan | None = None, *, summed: bool = False) -> None:
    """The same of a checkpoint, without a model in memory. `summed`: what is read of it has been checked. Raises AdapterError where that cannot be used, DiskFailed."""
    read, tensors = read_adapter(source, summed=summed)
    base = str(read_config(source).get("base_model_name_or_path") or "")
    publish(run, plan or read, tensors, base, lambda place: _copy_identity(source, place))


def _copy_identity(source: Path, place: Path) -> None:
    if (source / IDENTITY).is_file():
        shutil.copyfile(source / IDENTITY, place / IDENTITY)
