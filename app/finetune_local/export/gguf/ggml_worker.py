"""ggml in a separate process: rows of fp32 in, packed rows out, so that a crash does not take the app down.

A script run by its path (see ggml.py); imports the standard library and xllamacpp, nothing of the app. It writes {} or
{"missing": reason} once. Each request is then a line {"kind", "rows", "columns", "width"} followed by the numbers, each reply the line
{} followed by the packed bytes.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from finetune_local.system.messages import msg
from finetune_local.system.untrusted.text import parse_json_object

Quantise = Callable[[int, int, int, int, int, int, None], int]


def load() -> Quantise:
    """ggml_quantize_chunk(type, source, target, start, rows, columns, importances) of xllamacpp's library."""
    import xllamacpp

    function = ctypes.CDLL(xllamacpp.xllamacpp.__file__).ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [ctypes.c_int, pointer, pointer, size, size, size, pointer]
    quantise: Quantise = function
    return quantise


def main() -> None:
    """Serve until the input ends. ggml's output goes to stderr."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def say(value: dict[str, str]) -> None:
        out.write(json.dumps(value).encode() + b"\n")
        out.flush()

    try:
        quantise = load()
    except ImportError as error:
        say({"missing": msg("xllamacpp cannot be imported ({error})", error=error)})
        return
    except (AttributeError, OSError):
        say({"missing": msg("this build of xllamacpp does not expose ggml's quantisation")})
        return
    say({})
    threads = max(1, (os.cpu_count() or 2) // 2)
    with ThreadPoolExecutor(threads) as pool:
        for line in sys.stdin.buffer:
            request = parse_json_object(line)
            rows, columns, width = request["rows"], request["columns"], request["width"]
            source = sys.stdin.buffer.read(4 * rows * columns)
            target = ctypes.create_string_buffer(rows * width)
            numbers = ctypes.cast(ctypes.c_char_p(source), ctypes.c_void_p).value or 0
            place, step = ctypes.addressof(target), -(-rows // threads)

            def part(
                first: int,
                numbers: int = numbers,
                place: int = place,
                request: dict[str, int] = request,
                step: int = step,
            ) -> int:
                count = min(step, request["rows"] - first)
                return quantise(
                    request["kind"], numbers, place, first * request["columns"], count, request["columns"], None
                )

            if sum(pool.map(part, range(0, rows, step))) != rows * width:
                raise RuntimeError("ggml wrote another number of bytes than expected")
            say({})
            out.write(target.raw)
            out.flush()


if __name__ == "__main__":
    main()
