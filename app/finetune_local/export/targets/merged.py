"""Merged safetensors: a complete Hugging Face folder that transformers and mlx-lm load, without the adapter beside it."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from finetune_local.adapters.companions import copy_files, prompt_setup, stops_of, write_stops
from finetune_local.export.merged_config import merged_config
from finetune_local.export.targets import ADVICE, Command, Quant, Source, Target, check_room
from finetune_local.export.verification import verify
from finetune_local.export.verification.compare import BF16, F16, F32
from finetune_local.export.verification.receivers import FOLDER_RECEIVERS, mlx_lm_limit, mlx_lm_note
from finetune_local.export.verification.verify import Verification
from finetune_local.export.weights import HEAD, Floats, MergedWeights, check_float16, check_float16_base
from finetune_local.models.folder import CONFIG, INDEX, ModelFolder
from finetune_local.models.tensors import BYTES, Pending, write_tensors
from finetune_local.spec.base.tokenizer_files import GENERATION, OF_TOKENIZER, OTHER_FORMS, in_force
from finetune_local.system.errors import ModelError, typed
from finetune_local.system.files import written_aside
from finetune_local.system.messages import Progress, msg, silent

SHARD_BYTES = 5_000_000_000
LOSSLESS_BELOW = 1_000_000_000
"""Models with fewer parameters are written as float32 by default, so that nothing of the adapter is rounded away."""

DTYPES = (
    Quant(
        "auto", "Automatic", "As the base is stored; small models exactly. The right choice unless you know otherwise."
    ),
    Quant("float32", "float32", "Exact and large.", False),
    Quant("float16", "float16", "Half the size; for programs that require float16."),
    Quant("bfloat16", "bfloat16", "Half the size; what most models are published in."),
)
AUTO, FLOAT32, FLOAT16, _ = (dtype.key for dtype in DTYPES)
_LIMITS = {"F32": F32, "F16": F16, "BF16": BF16}
_SHORT = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_LONG = {short: dtype for dtype, short in _SHORT.items()}
_NOT_COPIED = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".gguf",
    ".onnx",
    ".h5",
    ".msgpack",
    ".npz",
    ".py",
    ".tmp",
)


def write_merged(
    model: ModelFolder,
    adapter: Path | None,
    out: Path,
    dtype: str = "auto",
    progress: Progress = silent,
) -> list[Path]:
    """Fold the adapter into the base in fp32 and write the folder `out`, replacing it. Returns the files.

    One tensor is in memory at a time. Raises AdapterError, ModelError (a value beyond float16), DiskFull.
    """
    return Merged().write(Source(model, adapter), out, dtype, progress)


class Merged(Target):
    """See Target."""

    key = "merged"
    title = "Merged model"
    summary = "A Hugging Face folder for transformers, mlx-lm and vLLM; can be trained further."
    order = 30
    quants = DTYPES
    quants_title = "Data type"
    folder_title = msg("a model folder")
    mark = CONFIG
    receivers = FOLDER_RECEIVERS

    def is_folder(self, quant: str) -> bool:
        """See Target."""
        return True

    def file_name(self, name: str, quant: str) -> str:
        """See Target."""
        return f"{name}-merged" if quant == AUTO else f"{name}-merged-{quant}"

    def check_source(self, source: Source) -> None:
        """See Target."""
        source.weights.shapes()

    def notes(self, source: Source) -> list[str]:
        """See Target: what plain mlx-lm cannot do with the folder, or only in part."""
        config = merged_config(source.model.config, "float32", HEAD in source.weights.shapes(), ())
        if limit := mlx_lm_limit(config):
            return [msg("not for mlx-lm: {reason}", reason=limit)]
        return [note] if (note := mlx_lm_note(config)) else []

    def size(self, source: Source, quant: str) -> int:
        """See Target."""
        rest = sum(file.stat().st_size for file in _rest(source.model.path))
        rest += sum(file.stat().st_size for file in in_force(source.model.path, source.adapter).values())
        return rest + _bytes(source.weights, chosen_dtype(source.model, quant))

    def check_values(self, source: Source, out: Path, quant: str) -> None:
        """See Target."""
        weights = source.weights
        if chosen_dtype(weights.model, quant) == "float16":
            check_float16_base(weights, dict.fromkeys(weights.shapes(), 1.0))
        check_room(out, self.size(source, quant))

    def write(self, source: Source, out: Path, quant: str, progress: Progress) -> list[Path]:
        """See write_merged."""
        weights = source.weights
        dtype = chosen_dtype(weights.model, quant)
        shards = _shards(weights.shapes(), BYTES[_SHORT[dtype]])
        size = _bytes(weights, dtype)
        self.check_values(source, out, quant)
        with written_aside(out, ADVICE) as folder:
            folder.mkdir()
            for path in _rest(weights.model.path):
                shutil.copyfile(path, folder / path.name)
            setup = prompt_setup(weights.model.path, weights.adapter)
            copy_files(setup, folder)
            stops = stops_of(setup)
            config = merged_config(weights.config, dtype, HEAD in weights.shapes(), stops.ids)
            (folder / CONFIG).write_text(_json(config), "utf-8")
            write_stops(folder, stops, config)
            (folder / "README.md").write_text(_card(weights, dtype), "utf-8")
            index: dict[str, str] = {}
            for number, names in enumerate(shards, 1):
                file = "model.safetensors"
                if len(shards) > 1:
                    file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
                pending = [_pending(weights, name, dtype) for name in names]
                before = (number - 1) / len(shards)
                write_tensors(
                    folder / file,
                    pending,
                    lambda d, b=before: progress(msg("merging"), b + d / len(shards)),  # type: ignore[misc]
                )
                index |= dict.fromkeys(names, file)
            if len(shards) > 1:
                (folder / INDEX).write_text(_json({"metadata": {"total_size": size}, "weight_map": index}), "utf-8")
            for path in folder.iterdir():
                _sync(path)
        return sorted(out.iterdir())

    def check(
        self, source: Source, out: Path, quant: str, backend: str, progress: Progress, skip: Collection[str] = ()
    ) -> Verification:
        """See Target."""
        limits = _LIMITS[_SHORT[chosen_dtype(source.model, quant)]]
        return verify.verify(
            self.receivers, out, limits, source.model, source.adapter, backend, progress, skip, source.prepared
        )

    def commands(self, out: Path, files: Sequence[Path]) -> list[Command]:
        """See Target."""
        place = typed(str(out))
        return [
            Command("mlx", "With mlx-lm on a Mac", f"mlx_lm.chat --model {place}"),
            Command("vllm", "Served by vLLM", f"vllm serve {place}"),
        ]


def chosen_dtype(model: ModelFolder, requested: str) -> str:
    """float32, float16 or bfloat16; see LOSSLESS_BELOW for "auto". Raises ModelError for another word."""
    keys = [dtype.key for dtype in DTYPES]
    if requested not in keys:
        raise ModelError(
            msg(
                "'{dtype}' is not a data type of merged models. Known: {names}.", dtype=requested, names=", ".join(keys)
            )
        )
    if requested != AUTO:
        return requested
    if model.parameters < LOSSLESS_BELOW:
        return "float32"
    sizes: Counter[str] = Counter()
    for info in model.weights().values():
        sizes[info.dtype] += math.prod(info.shape)
    return _LONG.get(sizes.most_common(1)[0][0], "float32")


def license_of(folder: Path) -> str | None:
    """The license that the model card's header names."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    header = re.match(r"---\r?\n(.*?)\r?\n---", card.read_text("utf-8", "replace"), re.DOTALL)
    found = re.search(r"^license:[ \t]*([\w.\-]+)[ \t]*$", header.group(1), re.MULTILINE) if header else None
    return found.group(1) if found else None


def _pending(weights: MergedWeights, name: str, dtype: str) -> Pending:
    def make() -> Floats:
        weight = weights.read(name)
        if dtype == "float16":
            check_float16(name, weight)
        return weight

    return Pending(name, weights.shapes()[name], _SHORT[dtype], make)


def _shards(shapes: dict[str, tuple[int, ...]], width: int) -> list[list[str]]:
    """Names in groups of at most SHARD_BYTES (one tensor may be bigger alone)."""
    groups: list[list[str]] = [[]]
    used = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * width
        if groups[-1] and used + size > SHARD_BYTES:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    return groups


def _bytes(weights: MergedWeights, dtype: str) -> int:
    return sum(math.prod(shape) for shape in weights.shapes().values()) * BYTES[_SHORT[dtype]]


def _rest(source: Path) -> list[Path]:
    """The chat template, the license: every plain file that is not weights, code, the base's card or of the tokenizer."""
    skipped = {CONFIG, INDEX, "README.md", "finetune_local.json", *OF_TOKENIZER, *OTHER_FORMS, GENERATION}
    return [
        path
        for path in sorted(source.iterdir())
        if path.is_file() and not path.name.startswith(".") and path.name not in skipped and not _is_weights(path.name)
    ]


def _is_weights(name: str) -> bool:
    return name.endswith((*_NOT_COPIED, ".index.json"))


def _card(weights: MergedWeights, dtype: str) -> str:
    """A short model card, so that the folder says what it is and under which license its base came."""
    model = weights.model
    header = [f"base_model: {model.name}"] + ([f"license: {found}"] if (found := license_of(model.path)) else [])
    origin = (
        msg(" with the adapter of run '{run}'", run=weights.run)
        if weights.run
        else (msg(" with an adapter") if weights.adapter else "")
    )
    return "\n".join(
        ["---", *header, "---", "", f"{model.name}{origin}, merged in fp32 and saved as {dtype} by finetune-local.", ""]
    )


def _json(values: object) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


TARGET = Merged()
