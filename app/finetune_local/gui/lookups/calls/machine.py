"""What this machine has: as `doctor --json` prints it, and how fast its processors multiply matrices."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from finetune_local.runtime.rpc import RpcRequest
from finetune_local.system.machine import machine
from finetune_local.system.paths import Home
from finetune_local.workspace.doctor import examine

_SIZE, _SECONDS = 768, 0.3


def answer(request: RpcRequest, home: Home) -> Mapping[str, Any]:
    """See diagnose.examine; "flops" are fp32 operations per second."""
    return {**examine(str(request.values.get("backend", "auto")), home), "flops": _flops()}


def _flops() -> float:
    """Operations per second of numpy's fp32 product on all processors, by processor time, so that a busy machine tells the same."""
    matrix = np.random.default_rng(0).random((_SIZE, _SIZE), np.float32)
    matrix @ matrix
    began, spent, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - began < _SECONDS:
        matrix @ matrix
        count += 1
    return machine().processors * 2.0 * _SIZE**3 * count / max(1e-3, time.process_time() - spent)
