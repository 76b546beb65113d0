"""An adapter on disk: PEFT's `adapter_config.json` + `adapter_model.safetensors`, read and written in one place.

Pure numpy; tensors are fp32 under PEFT's names. What PEFT does not know (the base's identity, the run) lies beside them in
`finetune_local.json`, written by adapters/identity.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from finetune_local.errors import AdapterError, typed
from finetune_local.files import disk_full
from finetune_local.spec.families import OWN_TYPE, Array, families, family_of, from_own_config
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.whole import NOT_TRAINED
from finetune_local.system import checksums

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def write_adapter(folder: Path, plan: AdapterPlan, tensors: Mapping[str, Array], base: str) -> None:
    """Write the pair of files into an existing or new folder. `base` is the base model's name. Raises DiskFull."""
    from safetensors.numpy import save_file

    config = {"base_model_name_or_path": base, **family_of(plan).config(plan)}
    with disk_full(folder, "Make room on it."):
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / WEIGHTS, metadata={"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")


def read_adapter(folder: Path, *, summed: bool = False) -> tuple[AdapterPlan, dict[str, Array]]:
    """The plan and the fp32 tensors of an adapter folder, ours or plain PEFT's; files that have checksums must match them.

    `summed`: they have been found to. Raises AdapterError.
    """
    from safetensors import SafetensorError

    if not summed:
        check_sums(folder)
    config = read_config(folder)
    if (folder / "adapter_model.bin").exists() and not (folder / WEIGHTS).exists():
        raise AdapterError(
            f"{folder}: adapter_model.bin is a pickle, which can run code. Save it as safetensors with PEFT."
        )
    try:
        tensors = read_tensors(folder / WEIGHTS)
        tensors = {name: value for name, value in tensors.items() if not name.endswith(NOT_TRAINED)}
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{folder / WEIGHTS}: cannot be read ({error}). {again(folder)}") from error
    return plan_of(folder, config, {name: tensor.shape for name, tensor in tensors.items()}), tensors


def check_sums(folder: Path) -> None:
    """Raise AdapterError where a file of an adapter is not the one that was written, which its SHA256SUMS tells."""
    if problem := checksums.problem(folder, (CONFIG, WEIGHTS)):
        raise AdapterError(
            f"{folder}: {problem}. {again(folder)} If you changed it on purpose, delete its {checksums.SUMS}."
        )


def again(folder: Path) -> str:
    """How to come by an adapter whose file is damaged: a run's can be made again, one from elsewhere be copied again."""
    folder = folder.absolute()
    if folder.parent.name == "checkpoints":
        return f"`finetune-local runs check {typed(folder.parents[1].name)}` tells which checkpoints of the run are intact."
    if folder.name == "adapter" and (folder.parent / "checkpoints").is_dir():
        name = typed(folder.parent.name)
        return f"`finetune-local runs check {name} --repair` makes it again from the run's last checkpoint."
    return "Copy the adapter again."


def plan_of(folder: Path, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> AdapterPlan:
    """The plan of an adapter by its config and the shapes of its tensors. Raises AdapterError where they do not agree."""
    plan = _plan(folder, config, shapes)
    expected = family_of(plan).shapes(plan)
    if wrong := sorted(set(expected) ^ set(shapes)):
        raise AdapterError(f"{folder}: {len(wrong)} tensors are missing or unknown, the first is {wrong[0]}.")
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise AdapterError(f"{folder}: {name} is {shapes[name]}, but {CONFIG} says {shape}.")
    return plan


def _plan(folder: Path, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> AdapterPlan:
    kind = str(config.get("peft_type"))
    if kind == OWN_TYPE:
        return from_own_config(config)
    known = {name: family for family in families().values() for name in family.peft_types}
    if kind not in known:
        raise AdapterError(f"{folder}: adapters of type {kind} cannot be used; known: {', '.join(sorted(known))}.")
    return known[kind].read(config, shapes)


def read_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json. Raises AdapterError where the folder is no adapter."""
    try:
        values = json.loads((folder / CONFIG).read_text("utf-8"))
    except FileNotFoundError:
        raise AdapterError(f"{folder}: no {CONFIG} here, so this is not an adapter folder.") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise AdapterError(f"{folder / CONFIG}: cannot be read ({error}).") from None
    if not isinstance(values, dict):
        raise AdapterError(f"{folder / CONFIG}: a JSON object is expected. {again(folder)}")
    return values


def read_tensors(path: Path) -> dict[str, Array]:
    """Every tensor of a safetensors file as fp32, bf16 included (numpy has no bf16: its bits are fp32's upper half)."""
    return {name: as_float32(raw, dtype, shape) for name, (raw, dtype, shape) in _raw(path).items()}


def as_float32(raw: bytes | memoryview, dtype: str, shape: tuple[int, ...]) -> Array:
    """Bytes of a safetensors tensor as an fp32 array. `dtype` is one of F32, F16, BF16, F64."""
    if dtype == "BF16":
        bits = np.frombuffer(raw, np.uint16).astype(np.uint32) << np.uint32(16)
        return bits.view(np.float32).reshape(shape)
    if dtype not in ("F32", "F16", "F64"):
        raise AdapterError(f"tensors of type {dtype} cannot be read as numbers.")
    kind = {"F32": np.float32, "F16": np.float16, "F64": np.float64}[dtype]
    with np.errstate(over="ignore"):  # infinity comes of it, which who needs finite numbers looks for
        return np.frombuffer(raw, kind).astype(np.float32).reshape(shape)


def to_bfloat16_bits(array: Array) -> Array:
    """fp32 rounded to the nearest bf16 (ties to even), as uint16 bits."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded >> np.uint32(16)).astype(np.uint16)


def _raw(path: Path) -> dict[str, tuple[bytes, str, tuple[int, ...]]]:
    from safetensors import deserialize

    return {
        name: (bytes(entry["data"]), str(entry["dtype"]), tuple(entry["shape"]))
        for name, entry in deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    }
