"""GGUF for llama.cpp and all that is built on it (Ollama, LM Studio), written by the official `gguf` package.

Straight from base + adapter, one tensor at a time. Names and layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from finetune_local.errors import ModelError
from finetune_local.export import Progress, silent
from finetune_local.export.files import ADVICE, check_room
from finetune_local.export.gguf_metadata import ARCHITECTURES, add_metadata
from finetune_local.export.gguf_tensors import GgufTensor, gguf_tensors
from finetune_local.export.gguf_vocabulary import add_vocabulary
from finetune_local.export.weights import MergedWeights, check_float16
from finetune_local.files import written_aside
from finetune_local.models.folder import ModelFolder

QUANTS = ("f16", "bf16", "q8_0", "f32")
_METADATA_BYTES = 32 * 2**20  # vocabulary and merges of the largest tokenizers


def write_gguf(
    model: ModelFolder, adapter: Path | None, out: Path, quant: str = "f16", progress: Progress = silent
) -> list[Path]:
    """Write base + adapter as one GGUF file, replacing `out`. Raises ModelError, AdapterError, DiskFull."""
    return Gguf().write(MergedWeights(model, adapter), out, quant, progress)


class Gguf:
    """See Target."""

    key = "gguf"
    title = "GGUF (llama.cpp, Ollama, LM Studio)"
    quants = QUANTS

    def place(self, out: Path, name: str, quant: str) -> Path:
        """The file itself, or one named after model and format in a folder that is there."""
        return out / f"{name}-{quant.upper()}.gguf" if out.is_dir() else out

    def write(self, weights: MergedWeights, out: Path, quant: str, progress: Progress) -> list[Path]:
        """See write_gguf."""
        from gguf import GGUFWriter

        model = weights.model
        if quant not in QUANTS:
            raise ModelError(f"'{quant}' is no GGUF format that can be written. Known: {', '.join(QUANTS)}.")
        check_family(model)
        tensors = gguf_tensors(weights, quant)
        check_room(out, sum(tensor.bytes for tensor in tensors) + _METADATA_BYTES)
        with written_aside(out, ADVICE) as aside:
            writer = GGUFWriter(aside, ARCHITECTURES[model.family])
            try:
                add_metadata(writer, weights, quant)
                add_vocabulary(writer, model, weights.adapter)
                _write(writer, tensors, progress)
            finally:
                writer.close()
        return [out]


def check_family(model: ModelFolder) -> None:
    """Raise ModelError where a model's family cannot be written, saying what to do."""
    if model.family not in ARCHITECTURES:
        raise ModelError(
            f"'{model.name}' is of the family '{model.family}', which cannot be exported to GGUF yet (known: "
            f"{', '.join(ARCHITECTURES)}). Export it with --to merged, then run llama.cpp's convert_hf_to_gguf.py on the folder."
        )


def _write(writer: Any, tensors: list[GgufTensor], progress: Progress) -> None:
    for tensor in tensors:
        writer.add_tensor_info(tensor.name, tensor.stored_shape, tensor.stored_dtype, tensor.bytes, tensor.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    total, done = sum(math.prod(tensor.shape) for tensor in tensors), 0
    for tensor in tensors:
        writer.write_tensor_data(_stored(tensor))
        done += math.prod(tensor.shape)
        progress("writing", done / total)
    writer.flush()
    for file in writer.fout:
        os.fsync(file.fileno())


def _stored(tensor: GgufTensor) -> np.ndarray:
    from gguf import GGMLQuantizationType, quants

    weight = tensor.make()
    if tensor.kind == GGMLQuantizationType.F16:
        check_float16(tensor.name, weight)
    return np.ascontiguousarray(quants.quantize(weight, tensor.kind))


TARGET = Gguf()
