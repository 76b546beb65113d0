"""An adapter on disk: PEFT's `adapter_config.json` + `adapter_model.safetensors`, read and written in one place.

Pure numpy; tensors are fp32 under PEFT's names. What PEFT has no place for (the base's identity, the run) is stored beside them in
`finetune_local.json`, written by adapters/identity.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from finetune_local.spec.low_rank.full_copies import NOT_TRAINED
from finetune_local.spec.peft_config import PeftConfig, peft_config
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.tuners import OWN_TYPE, PREFIX, Array, from_own_config, tuner_of, tuners
from finetune_local.spec.value_head import VALUE_HEAD
from finetune_local.system import checksums
from finetune_local.system.errors import AdapterError, typed
from finetune_local.system.files import FREE_SPACE, disk_full, written_aside
from finetune_local.system.messages import Message, msg, system_reason
from finetune_local.system.untrusted.text import ForeignTextError, open_file, parse_json_object, read_json_object

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_MOST_CONFIG_BYTES = 16 * 2**20
_MOST_DIMENSIONS = 4
_WRAPPERS = re.compile(rf"^((?:{re.escape(PREFIX)})?)module\.|(?<![^.])()_orig_mod\.")
_UPDATE = re.compile(r"\.lora_|\.ia3_l|\.vera_|\.adalora_|prompt_embeddings")
_ADAPTER_NAME = re.compile(r"(\.(?:lora_[A-Za-z_]+|ia3_l|vera_lambda_[bd]))\.default(?=\.|$)")


def write_adapter(folder: Path, plan: AdapterPlan, tensors: Mapping[str, Array], base: str) -> None:
    """Write the pair of files into an existing or new folder. `base` is the base model's name. Raises DiskFull."""
    from safetensors.numpy import save_file

    config = {"base_model_name_or_path": base, **tuner_of(plan).config(plan)}
    with disk_full(folder, FREE_SPACE):
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / WEIGHTS, metadata={"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")


def read_adapter(folder: Path, *, summed: bool = False) -> tuple[AdapterPlan, dict[str, Array]]:
    """The plan and the fp32 tensors of an adapter folder, written by the app or by PEFT. Files with checksums must match them.

    `summed`: the checksums have been checked already. Raises AdapterError.
    """
    if not summed:
        check_sums(folder)
    config = read_peft(folder)
    if (folder / "adapter_model.bin").exists() and not (folder / WEIGHTS).exists():
        raise AdapterError(
            msg(
                "{folder}: adapter_model.bin is a pickle, which can run code. Save it as safetensors with PEFT.",
                folder=folder,
            )
        )
    raw = _raw(folder / WEIGHTS)
    plan = plan_of(folder, config, {name: shape for name, (_, _, shape) in raw.items()})
    stored = names_in(raw, folder / WEIGHTS, config)
    tensors = {}
    for name in [*tuner_of(plan).shapes(plan), *([VALUE_HEAD] if VALUE_HEAD in stored else [])]:
        tensors[name] = as_float32(*raw[stored[name]])
        if not np.isfinite(tensors[name]).all():
            raise AdapterError(
                msg(
                    "{path}: {name} contains NaN or infinite values. Its training diverged, or the file is damaged: use "
                    "an earlier checkpoint of its run.",
                    path=folder / WEIGHTS,
                    name=name,
                )
            )
    return plan, tensors


def check_sums(folder: Path) -> None:
    """Raise AdapterError if a file of an adapter does not match its SHA256SUMS."""
    if problem := checksums.problem(folder, (CONFIG, WEIGHTS)):
        raise AdapterError(
            msg(
                "{folder}: {problem}. {again} If you changed it on purpose, delete its {sums}.",
                folder=folder,
                problem=problem,
                again=again(folder),
                sums=checksums.SUMS,
            )
        )


COPY_AGAIN = msg("Copy the adapter again.")


def again(folder: Path) -> Message:
    """How to recover an adapter with a damaged file: publish it again from its run, or copy it again from its source."""
    folder = folder.absolute()
    if folder.parent.name == "checkpoints":
        return msg(
            "`finetune-local runs check {run}` shows which checkpoints of the run are intact.",
            run=typed(folder.parents[1].name),
        )
    if folder.name == "adapter" and (folder.parent / "checkpoints").is_dir():
        name = typed(folder.parent.name)
        return msg("`finetune-local runs check {run} --repair` rebuilds it from the run's last checkpoint.", run=name)
    return COPY_AGAIN


def plan_of(folder: Path, config: PeftConfig, shapes: Mapping[str, tuple[int, ...]]) -> AdapterPlan:
    """The plan of an adapter from its config and the shapes of its tensors by name. Raises AdapterError if they do not agree."""
    names = names_in(shapes, folder / WEIGHTS, config)
    own = {name: shapes[stored] for name, stored in names.items() if not name.endswith((*NOT_TRAINED, VALUE_HEAD))}
    for name, shape in own.items():
        if not 1 <= len(shape) <= _MOST_DIMENSIONS:
            raise AdapterError(
                msg(
                    "{path}: {name} has {number} dimensions, too many for an adapter's tensor.",
                    path=folder / WEIGHTS,
                    name=name,
                    number=len(shape),
                )
                + " "
                + again(folder)
            )
    _refuse_others(folder, own, config)
    plan = _plan(folder, config, own)
    expected = tuner_of(plan).shapes(plan)
    if wrong := sorted(set(expected) ^ set(own)):
        raise AdapterError(
            msg(
                "{folder}: {number} tensors are missing or unknown, the first is {name}.",
                folder=folder,
                number=len(wrong),
                name=wrong[0],
            )
        )
    for name, shape in expected.items():
        if own[name] != shape:
            raise AdapterError(
                msg(
                    "{folder}: {name} is {shape}, but {file} says {other}.",
                    folder=folder,
                    name=name,
                    shape=own[name],
                    file=CONFIG,
                    other=shape,
                )
            )
    return plan


def names_in(stored: Collection[str], file: Path, config: PeftConfig) -> dict[str, str]:
    """The tensors of a file: from PEFT's name of each to its name in the file.

    Parts of names that wrappers add are dropped: torch.compile's `_orig_mod.`, DistributedDataParallel's `module.`, and PEFT's adapter
    name, `.default`. Raises AdapterError if two names become the same.
    """
    if config.peft_type == OWN_TYPE:
        return {name: name for name in stored}
    found: dict[str, str] = {}
    plain = {name: _ADAPTER_NAME.sub(r"\1", _WRAPPERS.sub(r"\1", name)) for name in stored}
    bare = not any(name.startswith(PREFIX) for name in plain.values())
    for name, peft in plain.items():
        if bare and _UPDATE.search(peft) and name != "prompt_embeddings":
            peft = PREFIX + peft
        if peft in found:
            raise AdapterError(
                msg(
                    "{file}: {one} and {other} are the same tensor, stored twice. Copy the adapter again.",
                    file=file,
                    one=found[peft],
                    other=name,
                )
            )
        found[peft] = name
    return found


def use_plain_names(folder: Path) -> bool:
    """Rename the tensors in a folder's file to PEFT's names; returns False if they have them already.

    The file must have been checked by read_adapter() before. Raises AdapterError, DiskFull.
    """
    file = folder / WEIGHTS
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = parse_json_object(content[8 : 8 + length])
    about = header.pop("__metadata__", None) or {"format": "pt"}
    names = names_in(header, file, read_peft(folder))
    if all(name == stored for name, stored in names.items()):
        return False
    text = json.dumps({"__metadata__": about, **{name: header[stored] for name, stored in names.items()}}).encode()
    text += b" " * (-len(text) % 8)
    with written_aside(file, FREE_SPACE) as aside:
        aside.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    return True


def _refuse_others(folder: Path, shapes: Mapping[str, tuple[int, ...]], config: PeftConfig) -> None:
    """Raise AdapterError that names the kind of file if it does not contain an adapter's tensors."""
    if config.peft_type == OWN_TYPE or not shapes:
        return
    if (
        not any(_UPDATE.search(name) for name in shapes)
        and sum(name.endswith(".weight") for name in shapes) > len(shapes) / 2
    ):
        raise AdapterError(
            msg(
                "{path}: it contains full model weights ({name}, ...), not an adapter. Add it with `finetune-local "
                "models add`, or choose the adapter's own file.",
                path=folder / WEIGHTS,
                name=min(shapes),
            )
        )


def _plan(folder: Path, config: PeftConfig, shapes: Mapping[str, tuple[int, ...]]) -> AdapterPlan:
    if config.peft_type == OWN_TYPE:
        return from_own_config(config)
    known = {name: family for family in tuners().values() for name in family.peft_types}
    if config.peft_type not in known:
        raise AdapterError(
            msg(
                "{folder}: adapters of type {kind} cannot be used; known: {names}.",
                folder=folder,
                kind=config.peft_type,
                names=", ".join(sorted(known)),
            )
        )
    return known[config.peft_type].read(config, shapes)


def read_peft(folder: Path) -> PeftConfig:
    """adapter_config.json as a record. Raises AdapterError that names the kind of folder if it is not a PEFT adapter."""
    values = read_config(folder)
    if "peft_type" not in values and {"lora_parameters", "fine_tune_type"} & values.keys():
        raise AdapterError(
            msg(
                "{folder}: this is an mlx-lm adapter, which stores its factors differently. Import it to convert it: "
                'finetune-local adapters import "{folder}"',
                folder=folder,
            )
        )
    return peft_config(values, str(folder / CONFIG))


def read_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json as a plain dict. Raises AdapterError if the folder is not an adapter."""
    try:
        return read_json_object(folder / CONFIG, _MOST_CONFIG_BYTES)
    except FileNotFoundError:
        if (folder / "config.json").is_file():
            raise AdapterError(
                msg(
                    "{folder}: this is a whole model (config.json), not an adapter. Use it with --model, or add it with "
                    "`finetune-local models add`.",
                    folder=folder,
                )
            ) from None
        raise AdapterError(
            msg("{folder}: no {file} here, so this is not an adapter folder.", folder=folder, file=CONFIG)
        ) from None
    except ForeignTextError as error:
        raise AdapterError(msg("{path}: {error}.", path=folder / CONFIG, error=error) + " " + again(folder)) from None
    except OSError as error:
        raise AdapterError(
            msg("{path}: cannot be read ({error}).", path=folder / CONFIG, error=system_reason(error))
        ) from None


def read_tensors(path: Path) -> dict[str, Array]:
    """Every tensor of a safetensors file as fp32, bf16 included (numpy has no bf16: its bits are fp32's upper half)."""
    return {name: as_float32(raw, dtype, shape) for name, (raw, dtype, shape) in _raw(path).items()}


def as_float32(raw: bytes | memoryview, dtype: str, shape: tuple[int, ...]) -> Array:
    """Bytes of a safetensors tensor as an fp32 array. `dtype` is one of F32, F16, BF16, F64."""
    if dtype == "BF16":
        bits = np.frombuffer(raw, np.uint16).astype(np.uint32) << np.uint32(16)
        return bits.view(np.float32).reshape(shape)
    if dtype not in ("F32", "F16", "F64"):
        raise AdapterError(msg("tensors of type {dtype} cannot be read as numbers.", dtype=dtype))
    kind = {"F32": np.float32, "F16": np.float16, "F64": np.float64}[dtype]
    with np.errstate(over="ignore"):  # values beyond fp32 become infinity; callers that care check for it
        return np.frombuffer(raw, kind).astype(np.float32).reshape(shape)


def to_bfloat16_bits(array: Array) -> Array:
    """fp32 rounded to the nearest bf16 (ties to even), as uint16 bits."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded >> np.uint32(16)).astype(np.uint16)


def _raw(path: Path, only: str | None = None) -> dict[str, tuple[bytes, str, tuple[int, ...]]]:
    from safetensors import SafetensorError, deserialize

    try:
        with open_file(path) as file:
            entries = deserialize(file.read())  # type: ignore[no-untyped-call]
        return {
            name: (bytes(entry["data"]), str(entry["dtype"]), tuple(entry["shape"]))
            for name, entry in entries
            if only in (None, name)
        }
    except (OSError, SafetensorError, ForeignTextError) as error:
        raise AdapterError(
            msg("{path}: cannot be read ({error}).", path=path, error=error) + " " + again(path.parent)
        ) from None
    except (MemoryError, OverflowError):
        raise AdapterError(
            msg("{path}: its header declares more data than fits in memory.", path=path) + " " + COPY_AGAIN
        ) from None
