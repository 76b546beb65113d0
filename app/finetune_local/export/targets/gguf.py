"""GGUF for llama.cpp and the programs built on it (Ollama, LM Studio), written by the official `gguf` package.

Tensors are merged and written one at a time. Names and layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from finetune_local.export.gguf import ggml
from finetune_local.export.gguf.ggml import Ggml
from finetune_local.export.gguf.quants import BY_KEY, QUANTS, is_k
from finetune_local.export.gguf.rehearsal import rehearse
from finetune_local.export.gguf.tensors import ARCHITECTURES, GgufTensor, Nowhere, add_metadata, gguf_tensors
from finetune_local.export.gguf.vocabulary import add_vocabulary, read_vocabulary
from finetune_local.export.targets import ADVICE, Command, Source, Target, check_room
from finetune_local.export.verification import verify
from finetune_local.export.verification.receivers import LLAMA_CPP
from finetune_local.export.verification.verify import Verification
from finetune_local.export.weights import EMBEDDING, MergedWeights, check_float16, check_float16_base
from finetune_local.models.folder import ModelFolder
from finetune_local.spec.base.tokenizer_files import TOKENIZER, in_force
from finetune_local.system.errors import ModelError, typed
from finetune_local.system.files import written_aside
from finetune_local.system.messages import Progress, msg, silent

_COARSE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1")
_GRID, _GRID_ROWS = 2e-3, 64
"""Mean rounding error, as a share of the weights, below which all are values of the format; and the number of rows compared."""

SMALL = 4_000_000_000
"""Bytes of an F16 file (2 billion parameters) up to which F16 is recommended. Above it Q8_0 is, and above four times as many Q4_K_M."""

_FULL, _HALF, _QUARTER = "f16", "q8_0", "q4_k_m"
LM_STUDIO = Command("lmstudio", "LM Studio and others: open the file there.")

_METADATA_BYTES = 32 * 2**20  # vocabulary and merges of the largest tokenizers


def write_gguf(
    model: ModelFolder, adapter: Path | None, out: Path, quant: str = "f16", progress: Progress = silent
) -> list[Path]:
    """Write base + adapter as one GGUF file, replacing `out`. Raises ModelError, AdapterError, DiskFull."""
    return Gguf().write(Source(model, adapter), out, quant, progress)


class Gguf(Target):
    """See Target."""

    key = "gguf"
    title = "One GGUF file"
    summary = "For llama.cpp, LM Studio, Jan and most other apps that run models."
    order = 10
    quants = QUANTS
    receivers = (LLAMA_CPP,)

    def is_folder(self, quant: str) -> bool:
        """See Target."""
        return False

    def file_name(self, name: str, quant: str) -> str:
        """See Target."""
        return f"{name}-{quant.upper()}.gguf"

    def check_source(self, source: Source) -> None:
        """See Target."""
        check_family(source.model)
        gguf_tensors(source.weights, QUANTS[0].key)
        add_metadata(Nowhere(), source.weights, QUANTS[0].key)
        read_vocabulary(source.model, source.adapter, source.weights.shapes()[EMBEDDING][0])

    def size(self, source: Source, quant: str) -> int:
        """See Target."""
        tensors = sum(tensor.bytes for tensor in planned(source.weights, quant))
        # A tokenizer takes about as many bytes in a GGUF as in tokenizer.json.
        return tensors + in_force(source.model.path, source.adapter)[TOKENIZER].stat().st_size

    def check_values(self, source: Source, out: Path, quant: str) -> None:
        """See Target."""
        weights = source.weights
        tensors = planned(weights, quant)
        add_metadata(Nowhere(), weights, quant)
        check_room(out, sum(tensor.bytes for tensor in tensors) + _METADATA_BYTES)
        rehearse(weights.model, weights.adapter, weights.shapes()[EMBEDDING][0])
        check_float16_base(weights, {t.source: times for t in tensors if t.source and (times := _holds(t.kind.name))})

    def write(self, source: Source, out: Path, quant: str, progress: Progress) -> list[Path]:
        """See write_gguf."""
        from gguf import GGUFWriter

        weights = source.weights
        tensors = planned(weights, quant)
        self.check_values(source, out, quant)
        with written_aside(out, ADVICE) as aside:
            writer = GGUFWriter(aside, ARCHITECTURES[weights.model.family])
            try:
                add_metadata(writer, weights, quant)
                add_vocabulary(writer, weights.model, weights.adapter, weights.shapes()[EMBEDDING][0])
                _write(writer, tensors, progress)
            finally:
                writer.close()
        return [out]

    def recommended(self, sizes: Mapping[str, int]) -> str | None:
        """See Target. Small models lose much by few bits, large ones little."""
        full = sizes.get(_FULL, 0)
        advised = _FULL if full <= SMALL else _HALF if full <= 4 * SMALL or _QUARTER not in sizes else _QUARTER
        return advised if advised in sizes else super().recommended(sizes)

    def check(
        self, source: Source, out: Path, quant: str, backend: str, progress: Progress, skip: Collection[str] = ()
    ) -> Verification:
        """See Target."""
        limits = BY_KEY[quant].limits
        return verify.verify(
            self.receivers, out, limits, source.model, source.adapter, backend, progress, skip, source.prepared
        )

    def commands(self, out: Path, files: Sequence[Path]) -> list[Command]:
        """See Target."""
        return [Command("llama", "In llama.cpp", f"llama-cli -m {typed(str(out))} -cnv"), LM_STUDIO]


def planned(weights: MergedWeights, quant: str) -> list[GgufTensor]:
    """The tensors to be written. Raises ModelError if the architecture or the quantization type cannot be written."""
    if quant not in BY_KEY:
        raise ModelError(
            msg(
                "'{quant}' is not a GGUF quantisation type that can be written. Known: {names}.",
                quant=quant,
                names=", ".join(BY_KEY),
            )
        )
    check_family(weights.model)
    tensors = gguf_tensors(weights, quant)
    if any(is_k(tensor.kind) for tensor in tensors) and (reason := ggml.missing()):
        raise ModelError(reason)
    if weights.adapter is not None:
        _check_grid(weights, quant, {tensor.kind for tensor in tensors})
    return tensors


def _check_grid(weights: MergedWeights, quant: str, kinds: set[Any]) -> None:
    """Raise ModelError if the base was converted from a file in the requested packed format.

    All its weights are then values of that format. Training changes a weight by less than the distance between two such values, so
    nearly all of the change would be rounded away.
    """
    from gguf import quants

    matrices = (
        name for name, shape in weights.shapes().items() if name.endswith("mlp.up_proj.weight") and len(shape) == 2
    )
    name = next(matrices, None)
    if name is None:
        return
    base = weights.model.read(name)[:_GRID_ROWS]
    for kind in kinds:
        if kind.name not in _COARSE or base.shape[-1] % 32:
            continue
        rounded = quants.dequantize(quants.quantize(base, kind), kind)
        # The median over rows: one huge value would dominate a mean over all.
        share = np.abs(rounded - base).mean(axis=-1) / np.maximum(np.abs(base).mean(axis=-1), 1e-12)
        if np.median(share) < _GRID:
            raise ModelError(
                msg(
                    "'{model}' was converted from a {kind} file. Exported as {quant} again, nearly all of the training "
                    "would be rounded away. Choose q8_0 or q4_0 instead.",
                    model=weights.model.name,
                    kind=kind.name,
                    quant=quant,
                )
            )


def check_family(model: ModelFolder) -> None:
    """Raise ModelError if a model's architecture cannot be written."""
    if model.family not in ARCHITECTURES:
        raise ModelError(
            msg(
                "'{model}' is a '{family}' model, which cannot be exported to GGUF yet (known: {names}). Export it "
                "with --to merged, then run llama.cpp's convert_hf_to_gguf.py on the folder.",
                model=model.name,
                family=model.family,
                names=", ".join(ARCHITECTURES),
            )
        )


def _write(writer: Any, tensors: list[GgufTensor], progress: Progress) -> None:
    for tensor in tensors:
        writer.add_tensor_info(tensor.name, tensor.stored_shape, tensor.stored_dtype, tensor.bytes, tensor.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    total, done = sum(math.prod(tensor.shape) for tensor in tensors), 0
    with Ggml() if any(is_k(tensor.kind) for tensor in tensors) else nullcontext() as child:
        for tensor in tensors:
            writer.write_tensor_data(_stored(tensor, child))
            done += math.prod(tensor.shape)
            progress(msg("writing"), done / total)
    writer.flush()
    for file in writer.fout:
        os.fsync(file.fileno())


def _holds(kind: str) -> float | None:
    """The largest value of a format, as a multiple of float16's: a block's scale (and in some formats its minimum) is float16."""
    return {"F16": 1.0, "Q4_1": 1.0, "Q5_1": 1.0, "Q4_0": 8.0, "Q5_0": 16.0, "Q8_0": 127.0}.get(kind)


def _stored(tensor: GgufTensor, child: Ggml | None) -> np.ndarray:
    from gguf import quants

    weight = tensor.make()
    if times := _holds(tensor.kind.name):
        check_float16(tensor.name, weight, times)
    if child is not None and is_k(tensor.kind):
        return child.quantise(weight, tensor.kind)
    return np.ascontiguousarray(quants.quantize(weight, tensor.kind))


TARGET = Gguf()
