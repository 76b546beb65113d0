"""A fully fine-tuned model beside its base: an adapter of full weights, or a Hugging Face folder; read one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_local.adapter_format import CONFIG, WEIGHTS, check_sums, read_peft
from finetune_local.adapters.companions import beside, carrier
from finetune_local.adapters.identity import check_same_base, check_shapes, read_identity, times
from finetune_local.models.folder import ModelFolder
from finetune_local.models.tensors import BYTES, Floats, read_header, read_tensor
from finetune_local.spec.base.weights import is_buffer
from finetune_local.spec.plan import WeightInfo
from finetune_local.spec.tuners import PREFIX, from_own_config, holds_base_weights, tuner_of
from finetune_local.system.errors import AdapterError, ModelError
from finetune_local.system.messages import msg

HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Tuned:
    """A full fine-tune. `weights` are the weights that may have changed, by the base's names; `read` returns one as fp32.

    `lineage` is recorded in the extracted adapter; `beside` is the folder with the tokenizer, template and generation settings.
    """

    name: str
    run: str | None
    lineage: Mapping[str, Any]
    weights: Mapping[str, WeightInfo]
    read: Callable[[str], Floats]
    notes: tuple[str, ...] = ()
    beside: Path | None = None


def from_adapter(folder: Path, base: ModelFolder) -> Tuned:
    """The weights in an adapter folder of the tuner `full`. Raises AdapterError for other adapters or another base."""
    config = read_peft(folder)
    if not holds_base_weights(config):
        kind = config.method or str(config.peft_type)
        raise AdapterError(
            msg(
                "{folder}: this adapter is of type '{kind}' and has no full weights to extract from. Use an adapter "
                "that was trained with --method full, or pass a fine-tuned model's folder with --tuned.",
                folder=folder,
                kind=kind,
            )
        )
    check_sums(folder)
    plan = from_own_config(config)
    identity = read_identity(folder)
    if identity is not None:
        check_same_base(identity, base, beside(folder))
    check_shapes(plan, base)
    stored = read_header(folder / WEIGHTS)
    shapes = tuner_of(plan).shapes(plan)
    for name, shape in shapes.items():
        if name not in stored or stored[name].shape != shape:
            raise AdapterError(
                msg(
                    "{folder}: {name} is missing or does not match {file}. Copy the adapter again.",
                    folder=folder,
                    name=name,
                    file=CONFIG,
                )
            )
    run = identity.run if identity else None
    return Tuned(
        run or folder.name,
        run,
        {"run": run, "method": plan.method},
        {name.removeprefix(PREFIX): WeightInfo(stored[name].shape, stored[name].dtype) for name in shapes},
        lambda name: read_tensor(stored[PREFIX + name], name),
        beside=carrier(folder),
    )


def from_folder(path: Path, base: ModelFolder) -> Tuned:
    """A Hugging Face folder of the tuned model. Raises ModelError if its tensors do not match the base's names and shapes."""
    model = ModelFolder.open(path)
    if model.family != base.family:
        raise ModelError(
            msg(
                "--tuned {path}: this is a '{family}' model, but '{base}' is a '{other}' model. Name the base that "
                "it was fine-tuned from with --model.",
                path=path,
                family=model.family,
                base=base.name,
                other=base.family,
            )
        )
    names = _same_tensors(path, model, base)
    own, other = base.weights(), model.weights()
    mine, its = base.identity(), model.identity()
    if mine.config_sha256 != its.config_sha256:
        raise ModelError(
            msg(
                "--tuned {path}: its config.json differs from that of '{base}' (position encoding, window or tied "
                "head), which an adapter cannot express. Use the tuned model as it is.",
                path=path,
                base=base.name,
            )
        )
    notes = []
    if mine.tokenizer_sha256 != its.tokenizer_sha256:
        notes.append(
            msg("the fine-tuned model's tokenizer or chat template differs from the base's: the adapter includes it")
        )
    if coarser := sorted({other[n].dtype for n in names if BYTES[other[n].dtype] < BYTES[own[n].dtype]}):
        notes.append(
            msg(
                "the fine-tuned weights are stored in {dtype}, coarser than the base's: rounding errors count as "
                "change",
                dtype=coarser[0],
            )
        )
    return Tuned(model.name, None, {"folder": model.name}, {n: other[n] for n in names}, model.read, tuple(notes), path)


def _same_tensors(path: Path, model: ModelFolder, base: ModelFolder) -> list[str]:
    """The names both have. Raises ModelError if the tuned model has other tensors or shapes than the base."""
    own, other = base.weights(), model.weights()
    skipped = {HEAD} if base.tied and model.tied else set()  # a tied head that was stored too
    names = [name for name in own if name not in skipped and not is_buffer(name)]
    for name in names:
        if name not in other:
            raise ModelError(
                msg(
                    "--tuned {path}: it has no {name}, which '{base}' has. It was fine-tuned from another base.",
                    path=path,
                    name=name,
                    base=base.name,
                )
            )
        if other[name].shape != own[name].shape:
            raise ModelError(
                msg(
                    "--tuned {path}: {name} is {shape}, but in '{base}' it is {other}. An adapter cannot change a shape "
                    "(such as a vocabulary that grew): use the fine-tuned model itself.",
                    path=path,
                    name=name,
                    shape=times(other[name].shape),
                    base=base.name,
                    other=times(own[name].shape),
                )
            )
    if added := sorted(name for name in set(other) - set(own) - skipped if not is_buffer(name)):
        raise ModelError(
            msg(
                "--tuned {path}: it has {name}, which '{base}' does not have, and an adapter cannot add a weight. "
                "Name the base that it was fine-tuned from with --model, or use the fine-tuned model itself.",
                path=path,
                name=added[0],
                base=base.name,
            )
        )
    return names
