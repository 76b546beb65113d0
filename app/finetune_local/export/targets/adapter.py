"""The adapter alone, in PEFT's format: a folder, or a zip of one, for programs that load it beside the base.

Nothing is merged, so every kind of adapter can be exported. Verification: the written files read back equal.
"""

from __future__ import annotations

import json
import shutil
import time
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from finetune_local.adapter_format import CONFIG, WEIGHTS, read_adapter, read_config, write_adapter
from finetune_local.adapters.companions import carrier
from finetune_local.adapters.identity import FILE as IDENTITY
from finetune_local.adapters.identity import read_identity
from finetune_local.export.targets import ADVICE, Command, Quant, Source, Target, check_room
from finetune_local.export.verification.verify import Verification
from finetune_local.models.folder import sha256_of
from finetune_local.spec.base.tokenizer_files import TOKENIZER, TRAVEL, copy_brought
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.tuners import OWN_TYPE, Array, tuner_of
from finetune_local.spec.value_head import folded
from finetune_local.system.errors import VerificationFailed, typed
from finetune_local.system.files import ASIDE, disk_full, remove, written_aside
from finetune_local.system.messages import Progress, msg
from finetune_local.system.untrusted.text import parse_json_object

FOLDER, ZIP = (
    Quant("folder", "Folder", "As PEFT and vLLM load it."),
    Quant("zip", "Zip file", "One file, easier to send."),
)
README = "README.md"
_FILES = (CONFIG, WEIGHTS, IDENTITY)  # without the user's note, which is private


class Adapter(Target):
    """See Target. It comes as a folder, or as one file."""

    key = "adapter"
    title = "Adapter alone"
    summary = "Small: for PEFT, vLLM, or Finetune Local on another computer. Needs the base model too."
    order = 40
    quants = (FOLDER, ZIP)
    quants_title = "Save as"
    folder_title = msg("an adapter's folder")
    mark = CONFIG
    needs_base = False

    def is_folder(self, quant: str) -> bool:
        """See Target."""
        return quant == FOLDER.key

    def file_name(self, name: str, quant: str) -> str:
        """See Target."""
        return f"{name}-adapter.zip" if quant == ZIP.key else f"{name}-adapter"

    def check_source(self, source: Source) -> None:
        """See Target."""
        read_adapter(source.adapter_folder)

    def size(self, source: Source, quant: str) -> int:
        """See Target."""
        folder = source.adapter_folder
        beside = carrier(folder)
        files = [*(folder / name for name in _FILES), *(beside / name for name in TRAVEL)]
        return sum(file.stat().st_size for file in files if file.is_file())

    def check_values(self, source: Source, out: Path, quant: str) -> None:
        """See Target."""
        self.check_source(source)

    def write(self, source: Source, out: Path, quant: str, progress: Progress) -> list[Path]:
        """See Target."""
        folder = source.adapter_folder
        published = published_of(folder)
        size = self.size(source, quant)
        check_room(out, size if quant == FOLDER.key else 2 * size)
        progress(msg("writing"), 0.0)
        if quant == FOLDER.key:
            with written_aside(out, ADVICE) as aside:
                _fill(aside, folder, published)
        else:
            with written_aside(out, ADVICE) as aside, _beside(out) as made:
                _fill(made, folder, published)
                _pack(made, aside, source.name)
        progress(msg("writing"), 1.0)
        return sorted(out.iterdir()) if out.is_dir() else [out]

    def check(
        self, source: Source, out: Path, quant: str, backend: str, progress: Progress, skip: Collection[str] = ()
    ) -> Verification:
        """See Target."""
        started = time.monotonic()
        progress(msg("verifying the export"), 0.0)
        expected = published_of(source.adapter_folder)
        if quant == FOLDER.key:
            found = _read(out)
        else:
            with disk_full(out, ADVICE), _beside(out) as made, zipfile.ZipFile(out) as packed:
                packed.extractall(made)
                (folder,) = made.iterdir()
                found = _read(folder)
        if found.beside != expected.beside:
            raise VerificationFailed(msg("adapter: its tokenizer and chat template were not written unchanged."))
        if found.config != expected.config or found.tensors.keys() != expected.tensors.keys():
            raise VerificationFailed(msg("adapter: the written adapter differs when it is read back."))
        for name, tensor in expected.tensors.items():
            if not np.array_equal(found.tensors[name], tensor, equal_nan=True):
                raise VerificationFailed(
                    msg("adapter: the tensor {name} does not read back as it was written.", name=name)
                )
        progress(msg("verifying the export"), 1.0)
        return Verification(True, tensors=len(expected.tensors), seconds=round(time.monotonic() - started, 1))

    def commands(self, out: Path, files: Sequence[Path]) -> list[Command]:
        """See Target."""
        place = typed(str(out))
        return [Command("import", "In Finetune Local on another computer", f"finetune-local adapters import {place}")]


@dataclass(frozen=True)
class Published:
    """An adapter in the inference form. `plan` is None if its own files have that form already, which a checkpoint's have not."""

    config: dict[str, Any]
    tensors: dict[str, Array]
    plan: AdapterPlan | None = None
    beside: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of the files that decide how it is prompted, by name."""


def published_of(folder: Path) -> Published:
    """The inference form of an adapter folder. Raises AdapterError."""
    plan, tensors = read_adapter(folder)
    new_plan, new = folded(plan, tensors)
    same = new_plan == plan and new.keys() == tensors.keys()
    if same and all(np.array_equal(new[name], tensors[name], equal_nan=True) for name in new):
        return Published(read_config(folder), tensors, beside=_beside_weights(folder))
    config = {"base_model_name_or_path": _base(folder), **tuner_of(new_plan).config(new_plan)}
    return Published(parse_json_object(json.dumps(config)), new, new_plan, _beside_weights(folder))


def _read(folder: Path) -> Published:
    return Published(read_config(folder), read_adapter(folder)[1], beside=_beside_weights(folder))


def _beside_weights(folder: Path) -> dict[str, str]:
    found = carrier(folder)
    return {name: sha256_of(found / name) for name in TRAVEL if (found / name).is_file()}


def _base(folder: Path) -> str:
    return str(read_config(folder).get("base_model_name_or_path") or "")


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A temporary folder for files that are packed or unpacked, on the same disk as `out`; removed in any case."""
    folder = out.with_name(f"{ASIDE}files-{out.name}")
    remove(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        yield folder
    finally:
        remove(folder)


def _fill(target: Path, folder: Path, published: Published) -> None:
    target.mkdir()
    if published.plan is None:
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(folder / name, target / name)
    else:
        write_adapter(target, published.plan, published.tensors, _base(folder))
    if (folder / IDENTITY).is_file():
        shutil.copyfile(folder / IDENTITY, target / IDENTITY)
    copy_brought(carrier(folder), target)
    (target / README).write_text(_card(folder), "utf-8", newline="\n")


def _pack(folder: Path, file: Path, name: str) -> None:
    """Write a zip without compression, because weights hardly shrink."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as packed:
        for path in sorted(folder.iterdir()):
            packed.write(path, f"{name}/{path.name}")


def _card(folder: Path) -> str:
    """The README: what the adapter is, and how it is loaded."""
    config, identity = read_config(folder), read_identity(folder)
    asks = (carrier(folder) / TOKENIZER).is_file()
    base = (identity.base.name if identity else "") or str(config.get("base_model_name_or_path") or "its base model")
    made = f"An adapter ({identity.method}) for {base}" if identity else f"An adapter for {base}"
    lines = ["---", f"base_model: {base}", "library_name: peft", "---", "", f"{made}, exported by finetune-local.", ""]
    if config.get("peft_type") == OWN_TYPE:
        lines.remove("library_name: peft")
        lines += ["PEFT has no such method. Use it in finetune-local:", ""]
    else:
        lines += [
            "```python",
            "from peft import PeftModel",
            f"from transformers import AutoModelForCausalLM{', AutoTokenizer' if asks else ''}",
            "",
            f"model = AutoModelForCausalLM.from_pretrained({base!r})  # or the folder it lies in",
            'model = PeftModel.from_pretrained(model, "PATH OF THIS FOLDER")',
            *(['tokenizer = AutoTokenizer.from_pretrained("PATH OF THIS FOLDER")'] if asks else []),
            "```",
            "",
            "Or in finetune-local:",
            "",
        ]
    return "\n".join([*lines, "```sh", "finetune-local adapters import PATH", "```", ""])


TARGET = Adapter()
