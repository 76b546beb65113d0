"""The files that hold a model's weights: model.safetensors, or the shards of an index, as transformers selects them.

Links are followed, because the Hugging Face cache is made of them; a broken link is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from finetune_local.spec.base.config import read_config_file
from finetune_local.spec.base.misfits import not_finite
from finetune_local.system.errors import ModelError
from finetune_local.system.messages import msg
from finetune_local.system.untrusted.tensor_header import Stored, tensors_of
from finetune_local.system.untrusted.text import ForeignTextError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "consolidated.*.pth")
_MOST_SHARDS = 10_000
_PIECE = 1 << 20
_EXPONENTS: Mapping[str, tuple[Any, Any]] = {
    "F16": (np.uint16, np.uint16(0x7C00)),
    "BF16": (np.uint16, np.uint16(0x7F80)),
    "F32": (np.uint32, np.uint32(0x7F800000)),
    "F64": (np.uint64, np.uint64(0x7FF0000000000000)),
}


def weight_files(folder: Path) -> list[Path]:
    """The weight files, all present. Raises ModelError naming what is missing or unusable."""
    if (folder / INDEX).is_file() or (folder / INDEX).is_symlink():
        return [folder / name for name in sorted(set(weight_map(folder).values()))]
    single = folder / WEIGHTS
    if single.is_file():
        return [single]
    if single.is_symlink():
        raise ModelError(msg("{single}: a broken link. Copy the file itself from the model's source.", single=single))
    found = sorted(file.name for file in folder.glob("*.safetensors"))
    if not found:
        _no_weights(folder)
    _numbered_there(folder, found)
    raise ModelError(
        msg(
            "{folder}: the weights are in {found}{value}, and there is neither {single} nor {index}. Copy the "
            "index from the model's source.",
            folder=folder,
            found=found[0],
            value=(msg(" and others") if len(found) > 1 else ""),
            single=WEIGHTS,
            index=INDEX,
        )
        if len(found) > 1
        else msg(
            "{folder}: the weights are in {found}{value}, and there is neither {single} nor {index}. Copy the "
            "file under its original name from the model's source.",
            folder=folder,
            found=found[0],
            value=(msg(" and others") if len(found) > 1 else ""),
            single=WEIGHTS,
            index=INDEX,
        )
    )


def weight_map(folder: Path) -> Mapping[str, str]:
    """Tensor name -> file, from the index; every file exists. Raises ModelError."""
    where = read_config_file(folder / INDEX).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(v, str) for v in where.values()):
        raise ModelError(msg("{path}: 'weight_map' is missing. Copy the file again.", path=folder / INDEX))
    names = sorted(set(where.values()))
    if len(names) > _MOST_SHARDS:
        raise ModelError(
            msg(
                "{path}: it lists {count} files, too many for a model. Copy the file again.",
                path=folder / INDEX,
                count=len(names),
            )
        )
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors") or not name.isprintable():
            raise ModelError(
                msg(
                    "{path}: {name} is not the name of a file in this folder.",
                    path=folder / INDEX,
                    name=repr(name[:120]),
                )
            )
    _all_there(folder, [name for name in names if not (folder / name).is_file()], len(names))
    if WEIGHTS not in names and (folder / WEIGHTS).exists():
        raise ModelError(
            msg(
                "{folder}: it contains both {single} and an index of other files ({index}), so it is unclear which "
                "of them is the model. Remove the other model's files.",
                folder=folder,
                single=WEIGHTS,
                index=INDEX,
            )
        )
    return where


def check_finite(files: Iterable[Path]) -> None:
    """Scan every float tensor once, in chunks. Raises ModelError for the first one with NaN or infinity.

    For weights that are quantised during loading; backends check others in memory.
    """
    for file in files:
        try:
            with file.open("rb") as content:
                for name, tensor in tensors_of(file).items():
                    if tensor.dtype in _EXPONENTS and (bad := _not_finite(content, tensor)):
                        raise ModelError(not_finite(file, name, bad))
        except (OSError, ForeignTextError) as error:
            raise ModelError(msg("{path}: {error}. Copy or download the file again.", path=file, error=error)) from None


def _not_finite(content: BinaryIO, tensor: Stored) -> int:
    """How many numbers have an all-ones exponent: NaN or infinity."""
    kind, ones = _EXPONENTS[tensor.dtype]
    content.seek(tensor.begin)
    count = 0
    for at in range(tensor.begin, tensor.end, _PIECE):
        bits = np.frombuffer(content.read(min(_PIECE, tensor.end - at)), kind)
        count += int(np.count_nonzero((bits & ones) == ones))
    return count


def _no_weights(folder: Path) -> None:
    if pickles := [file.name for pattern in _PICKLES for file in folder.glob(pattern)]:
        raise ModelError(
            msg(
                "{folder}: {file} is a pickle, which can run code when it is opened. Download the model as "
                "safetensors, or open it with transformers where you trust it and save it with save_pretrained().",
                folder=folder,
                file=pickles[0],
            )
        )
    raise ModelError(msg("{folder}: no *.safetensors here. Copy the model's weights into the folder.", folder=folder))


def _numbered_there(folder: Path, names: Iterable[str]) -> None:
    """Shards present of a series whose names give the total."""
    for name in names:
        part = re.fullmatch(r"(.*)-([0-9]{1,9})-of-([0-9]+)\.safetensors", name)
        if part is None:
            continue
        width, last = len(part.group(2)), part.group(3)
        if len(last) > 9 or int(last) > _MOST_SHARDS:
            raise ModelError(
                msg(
                    "{path}: by its name it is one of {count} files, too many for a model. Rename it.",
                    path=folder / name,
                    count=last[:20],
                )
            )
        expected = [f"{part.group(1)}-{i:0{width}}-of-{last}.safetensors" for i in range(1, int(last) + 1)]
        _all_there(folder, [one for one in expected if not (folder / one).is_file()], int(last))


def _all_there(folder: Path, missing: list[str], count: int) -> None:
    if missing:
        link = (folder / missing[0]).is_symlink()
        raise ModelError(
            msg(
                "{folder}: {number} of its {count} weight files are missing, the first is {missing}{value}. Copy or "
                "download them too.",
                folder=folder,
                number=len(missing),
                count=count,
                missing=missing[0],
                value=(msg(" (a broken link)") if link else ""),
            )
        )
