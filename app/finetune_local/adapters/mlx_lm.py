"""Adapters of mlx-lm's trainer: adapters.safetensors, with transposed factors and a separate scale.

mlx-lm computes y = W·x + scale·(x·a)·b with a (in, rank) and b (rank, out);
DoRA's magnitude is called m. PEFT has A = aᵀ, B = bᵀ and scale = alpha/rank. Converted on import; the rest of the app only sees PEFT's form.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from finetune_local.adapter_format import CONFIG, WEIGHTS, read_config, read_tensors, write_adapter
from finetune_local.spec.low_rank.peft import MAGNITUDE, A, B, known_plan
from finetune_local.spec.low_rank.settings import LowRankSettings
from finetune_local.spec.peft_config import Name, Positive, Text
from finetune_local.spec.plan import Target
from finetune_local.spec.run import DEFAULT_METHOD
from finetune_local.spec.targets import is_embedding
from finetune_local.spec.tuners import PREFIX, Array, presets
from finetune_local.system.errors import AdapterError
from finetune_local.system.messages import msg

MLX_WEIGHTS = "adapters.safetensors"
_LEAF = re.compile(r"(.+)\.(lora_a|lora_b|m)")


class _Parameters(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    scale: Positive
    dropout: float = Field(0.0, ge=0, lt=1)


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    fine_tune_type: Name = DEFAULT_METHOD  # mlx-lm's own default is called so too
    lora_parameters: _Parameters | None = None
    model: Text = ""


def is_mlx_lm(folder: Path) -> bool:
    """Whether a folder holds an adapter in mlx-lm's form."""
    return (folder / MLX_WEIGHTS).is_file() and not (folder / WEIGHTS).is_file()


def convert(folder: Path) -> None:
    """Replace mlx-lm's files by PEFT's two. Raises AdapterError if PEFT's form cannot represent the adapter."""
    config = _read(folder)
    kind = {preset.key: preset for preset in presets().values() if preset.in_mlx_lm}.get(config.fine_tune_type)
    if kind is None or config.lora_parameters is None:
        raise AdapterError(
            msg(
                "{folder}: an mlx-lm adapter of type '{kind}'; only lora and dora can be read. Fuse it with "
                "mlx_lm.fuse and use the fused model.",
                folder=folder,
                kind=config.fine_tune_type,
            )
        )
    dora = kind.defaults.get("method.use_dora") is True
    tensors: dict[str, Array] = {}
    targets, ranks = [], {}
    for module, parts in _factors(folder).items():
        a, b = _checked(module, parts, dora, folder / MLX_WEIGHTS)
        tensors[PREFIX + module + A], tensors[PREFIX + module + B] = a.T, b.T
        if dora:
            tensors[PREFIX + module + MAGNITUDE] = parts["m"]
        targets.append(Target(module, a.shape[0], b.shape[1]))
        ranks[module] = a.shape[1]
    if not targets:
        raise AdapterError(msg("{path}: it is empty. Copy it again.", path=folder / MLX_WEIGHTS))
    settings = _settings(config.lora_parameters, ranks, dora, folder)
    write_adapter(folder, known_plan(settings, tuple(targets)), tensors, config.model)
    (folder / MLX_WEIGHTS).unlink()


def _factors(folder: Path) -> dict[str, dict[str, Array]]:
    """The tensors of mlx-lm's file by module and factor. Raises AdapterError for a tensor that is not a factor."""
    pairs: dict[str, dict[str, Array]] = {}
    for name, value in read_tensors(folder / MLX_WEIGHTS).items():
        found = _LEAF.fullmatch(name)
        if found is None:
            raise AdapterError(
                msg(
                    "{path}: {name} is not a LoRA factor. The file contains full weights: fuse it with mlx_lm.fuse.",
                    path=folder / MLX_WEIGHTS,
                    name=name,
                )
            )
        pairs.setdefault(found[1], {})[found[2]] = value
    return pairs


def _checked(module: str, parts: Mapping[str, Array], dora: bool, path: Path) -> tuple[Array, Array]:
    """The factors a (in, rank) and b (rank, out) of one module. Raises AdapterError if they do not form a LoRA PEFT can represent."""
    a, b = parts.get("lora_a"), parts.get("lora_b")
    if a is None or b is None or dora != ("m" in parts):
        raise AdapterError(
            msg(
                "{path}: {module} has a factor missing, or one too many. Copy it again.",
                path=path,
                module=module,
            )
        )
    if a.ndim != 2 or b.ndim != 2:
        raise AdapterError(
            msg(
                "{path}: {module} has {number} dimensions: adapters of experts cannot be read. Fuse it with "
                "mlx_lm.fuse and use the fused model.",
                path=path,
                module=module,
                number=a.ndim,
            )
        )
    if a.shape[1] != b.shape[0]:
        raise AdapterError(
            msg(
                "{path}: the factors of {module} do not fit. Copy it again.",
                path=path,
                module=module,
            )
        )
    if is_embedding(module):
        raise AdapterError(
            msg(
                "{path}: this mlx-lm adapter on {module} also changes the head, because both share one table, which "
                "the PEFT format cannot express. Fuse it with mlx_lm.fuse and use the fused model.",
                path=path,
                module=module,
            )
        )
    return a, b


def _settings(parameters: _Parameters, ranks: Mapping[str, int], dora: bool, folder: Path) -> LowRankSettings:
    rank = max(ranks.values())
    others = {module: own for module, own in ranks.items() if own != rank}
    try:
        return LowRankSettings(
            rank=rank,
            alpha=parameters.scale * rank,
            rank_pattern=tuple(f"{module}={own}" for module, own in others.items()),
            alpha_pattern=tuple(f"{module}={parameters.scale * own!r}" for module, own in others.items()),
            dropout=parameters.dropout,
            use_dora=dora,
            targets=tuple(ranks),
        )
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise AdapterError(
            msg("{path}: it has no usable rank or scale ({error}). Copy it again.", path=folder / CONFIG, error=reason)
        ) from None


def _read(folder: Path) -> _Config:
    values: dict[str, Any] = read_config(folder)
    try:
        return _Config.model_validate({name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        name = ".".join(str(part) for part in problem["loc"])
        reason = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
        raise AdapterError(
            msg(
                "{path}: an mlx-lm adapter whose '{name}' cannot be used: {error}.",
                path=folder / CONFIG,
                name=name,
                error=reason,
            )
        ) from None
