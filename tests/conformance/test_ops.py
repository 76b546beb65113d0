"""The functions that objectives are written in: equal names on every backend, equal values and slopes to numpy's."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from finetune_local.backend import Backend
from finetune_local.spec.ops import NUMPY, Ops

X = np.array([-1.7, -0.4, 0.3, 0.9, 2.5, 40.0], np.float32)
Y = np.array([0.5, -0.6, 0.2, 1.9, -2.5, 3.0], np.float32)
SEGMENTS = np.array([2, 0, 0, 3, 2, 3], np.int32)

CALLS: dict[str, Callable[[Ops, Any, Any], Any]] = {
    "array": lambda ops, x, _: x * ops.array(Y),
    "sum": lambda ops, x, _: ops.sum(x),
    "mean": lambda ops, x, _: ops.mean(x),
    "exp": lambda ops, x, _: ops.exp(-ops.abs(x)),
    "log": lambda ops, x, _: ops.log(ops.square(x) + 1.0),
    "abs": lambda ops, x, _: ops.abs(x),
    "square": lambda ops, x, _: ops.square(x),
    "sigmoid": lambda ops, x, _: ops.sigmoid(x),
    "log_sigmoid": lambda ops, x, _: ops.log_sigmoid(-x),
    "clip": lambda ops, x, y: ops.clip(x, -0.5, 1.0) + ops.clip(y, None, 0.0) + ops.clip(y, 0.1, None),
    "where": lambda ops, x, y: ops.where(Y > 0, x, y) + ops.where(x > y, x, y),
    "minimum": lambda ops, x, y: ops.minimum(x, y),
    "maximum": lambda ops, x, y: ops.maximum(x, y),
    "take": lambda ops, x, _: ops.take(x, np.array([5, 0, 0, 2])) * 2.0,
    "segment_sum": lambda ops, x, _: ops.square(ops.segment_sum(x, SEGMENTS, 5)),
    "stack": lambda ops, x, y: ops.stack([x, y, x * y]),
    "stop_gradient": lambda ops, x, y: ops.stop_gradient(x) * y,
}


def names(of: type) -> set[str]:
    return {name for name, _ in inspect.getmembers(of, inspect.isfunction) if not name.startswith("_")}


def of(backend: Backend, call: Callable[[Ops, Any, Any], Any]) -> tuple[np.ndarray, list[np.ndarray]]:
    """A function's values and the gradients of their weighted sum by x and y."""
    if backend.name == "torch":
        import torch

        from finetune_local_backends.torch.ops import TorchOps

        ops = TorchOps(torch.device("cpu"))
        x, y = (torch.from_numpy(a.copy()).requires_grad_() for a in (X, Y))
        found = call(ops, x, y)
        (found * torch.arange(1, found.numel() + 1).reshape(found.shape)).sum().backward()
        return found.detach().numpy(), [np.zeros_like(X) if a.grad is None else a.grad.numpy() for a in (x, y)]
    from finetune_local_backends.mlx.device import start

    start("cpu")
    import mlx.core as mx

    from finetune_local_backends.mlx.ops import OPS

    def weighted(x: Any, y: Any) -> Any:
        found = call(OPS, x, y)
        return (found * mx.arange(1, found.size + 1).reshape(found.shape)).sum()

    slopes = mx.grad(weighted, argnums=(0, 1))(mx.array(X), mx.array(Y))
    return np.array(call(OPS, mx.array(X), mx.array(Y))), [np.array(slope) for slope in slopes]


def test_every_backend_has_the_same_functions(backend: Backend) -> None:
    module = __import__(f"finetune_local_backends.{backend.name}.ops", fromlist=["ops"])
    kind = next(value for name, value in vars(module).items() if name.endswith("Ops") and name != "Ops")
    assert names(kind) == names(Ops) == set(CALLS)
    for name in names(Ops):
        assert list(inspect.signature(getattr(kind, name)).parameters) == list(
            inspect.signature(getattr(Ops, name)).parameters
        ), name


@pytest.mark.parametrize("name", list(CALLS))
def test_a_function_is_numpys_and_its_slope_that_of_small_steps(backend: Backend, name: str) -> None:
    call = CALLS[name]
    values, slopes = of(backend, call)
    wide = [X.astype(np.float64), Y.astype(np.float64)]
    expected = np.asarray(call(NUMPY, *wide))
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)
    weights = np.arange(1, expected.size + 1).reshape(expected.shape)
    for number, slope in enumerate(slopes):
        if name == "stop_gradient" and number == 0:
            np.testing.assert_array_equal(slope, np.zeros_like(X))
            continue
        for index in range(len(X)):
            ends = []
            for sign in (1, -1):
                moved = [a.copy() for a in wide]
                moved[number][index] += sign * 1e-4
                ends.append(float((np.asarray(call(NUMPY, *moved)) * weights).sum()))
            assert slope[index] == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=2e-3, abs=1e-4), (number, index)
