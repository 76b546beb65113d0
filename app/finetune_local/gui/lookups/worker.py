"""The lookup process: it answers quick requests of the window that need a tokenizer, a framework or an adapter's files.

Run as `python -m finetune_local.gui.lookups.worker HOME`. The window's server imports none of these, so it stays small. A request is
`call(name, **values)` of an RPC client, with a name of `LOOKUPS`; each lookup imports what it needs on first use.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from finetune_local.runtime.rpc import RpcRequest, serve
from finetune_local.system.machine import machine as this_machine
from finetune_local.system.paths import Home

IDLE_SECONDS = 600.0
"""The process ends after this time without a request."""

_MATRIX_SIZE, _MEASURED_SECONDS = 768, 0.3


def brings(request: RpcRequest, home: Home) -> list[str]:
    """What the adapter in `folder` has besides its weights, as sentences. Raises AdapterError, ModelError."""
    from finetune_local.adapters.attach import brings

    return brings(Path(str(request.values["folder"])), home)


def inspect(request: RpcRequest, home: Home) -> Mapping[str, Any]:
    """What data files contain; see gui/lookups/inspect.py."""
    from finetune_local.gui.lookups.inspect import answer

    return answer(request, home)


def machine(request: RpcRequest, home: Home) -> Mapping[str, Any]:
    """This machine as `doctor --json` reports it, and "flops": fp32 operations per second of its processors."""
    from finetune_local.workspace.doctor import examine

    return {**examine(str(request.values.get("backend", "auto")), home).as_json(), "flops": _flops()}


def offers(request: RpcRequest, home: Home) -> Mapping[str, Any]:
    """The targets that `adapter` over `model` can be exported to, and the size of each quantization type. Raises AdapterError."""
    from finetune_local.export.pipeline import offers

    return asdict(offers(home, str(request.values["adapter"]), request.values.get("model")))


LOOKUPS: Mapping[str, Callable[[RpcRequest, Home], object]] = {
    lookup.__name__: lookup for lookup in (brings, inspect, machine, offers)
}


def _flops() -> float:
    """Operations per second of numpy's fp32 product on all processors. Processor time is counted, so that other programs on a busy
    machine do not change the result."""
    import numpy as np

    matrix = np.random.default_rng(0).random((_MATRIX_SIZE, _MATRIX_SIZE), np.float32)
    matrix @ matrix
    began, spent, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - began < _MEASURED_SECONDS:
        matrix @ matrix
        count += 1
    return this_machine().processors * 2.0 * _MATRIX_SIZE**3 * count / max(1e-3, time.process_time() - spent)


def _answer(name: str, home: Home, request: RpcRequest) -> object:
    return LOOKUPS[name](request, home)


if __name__ == "__main__":
    serve({name: partial(_answer, name, Home(Path(sys.argv[1]))) for name in LOOKUPS}, IDLE_SECONDS)
