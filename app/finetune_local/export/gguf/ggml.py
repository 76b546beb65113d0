"""Quantization by ggml itself (from xllamacpp) in a child process, for K-quants, which the gguf package can only read.

xllamacpp does not offer llama_model_quantize, but it exports ggml's ggml_quantize_chunk, on which that function is built. If the
library does not export the symbol, K-quants cannot be written, and `missing()` returns the reason.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune_local.export.engines.llama import INSTALL, available
from finetune_local.export.engines.process import Script
from finetune_local.system.errors import ModelError
from finetune_local.system.messages import Message, message_of, msg
from finetune_local.system.untrusted.text import parse_json_object

_WORKER = Path(__file__).with_name("ggml_worker.py")
_PIECE = 64 * 2**20  # bytes of fp32 per request


class Ggml(Script):
    """The child process."""

    def __init__(self) -> None:
        """Raises ModelError if xllamacpp is missing or lacks the function."""
        super().__init__(_WORKER)
        try:
            if reason := self._confirmation():
                raise ModelError(
                    msg("K-quants cannot be written here: {reason}. Choose q5_1, q4_1 or q8_0 instead.", reason=reason)
                )
        except BaseException:
            self.close()
            raise

    def quantise(self, weight: npt.NDArray[np.float32], kind: Any) -> npt.NDArray[np.uint8]:
        """Quantize a matrix (rows, columns) to a packed format (a gguf.GGMLQuantizationType); returns bytes per row."""
        from gguf import quants

        rows = weight.reshape(-1, weight.shape[-1])
        width = int(quants.quant_shape_to_byte_shape((1, rows.shape[1]), kind)[-1])
        step = max(1, _PIECE // (4 * rows.shape[1]))
        parts = [self._piece(rows[at : at + step], int(kind), width) for at in range(0, len(rows), step)]
        return np.concatenate(parts).reshape(*weight.shape[:-1], width)

    def _piece(self, rows: npt.NDArray[np.float32], kind: int, width: int) -> npt.NDArray[np.uint8]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        header = {"kind": kind, "rows": rows.shape[0], "columns": rows.shape[1], "width": width}
        try:
            self._process.stdin.write(json.dumps(header).encode() + b"\n")
            self._process.stdin.write(np.ascontiguousarray(rows).data)
            self._process.stdin.flush()
        except OSError:
            raise self._died() from None
        self._confirmation()
        data = self._process.stdout.read(rows.shape[0] * width)
        if len(data) != rows.shape[0] * width:
            raise self._died()
        return np.frombuffer(data, np.uint8).reshape(rows.shape[0], width)

    def _confirmation(self) -> str:
        """The next line of the child: "" if it is ready, else why it cannot quantize. Raises ModelError if it has died."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._died()
        return str(parse_json_object(line).get("missing", ""))

    def _died(self) -> ModelError:
        lines = self.last_words(1)
        words = msg(" It printed: {said}", said=lines[0]) if lines else ""
        return ModelError(
            msg(
                "ggml, which quantises, ended with exit code {code}.{words} Choose q8_0 instead.",
                code=self._process.wait(),
                words=words,
            )
        )


@cache
def missing() -> Message | None:
    """A sentence if K-quants cannot be written here, else None. Determined once, in the child process."""
    if not available():
        return msg(
            "K-quants are written by ggml in the package xllamacpp, which is not installed. {install}", install=INSTALL
        )
    try:
        Ggml().close()
    except ModelError as error:
        return message_of(error)
    return None
