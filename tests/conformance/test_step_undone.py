"""A step that fails at any of its writes changes nothing, and is then what it would have been: bit for bit, on every backend."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conforming import SFT, make_plan
from finetune_local.backend import Backend, Session, StepRequest
from finetune_local.spec.numerics.budget import Budget
from finetune_local.spec.run import parse_spec
from finetune_local.system.errors import OutOfMemory, RunError
from finetune_local_backends.undo import all_or_nothing
from tasks import batch_of
from tiny import tiny_model

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"key": "lora", "rank": 4},
    "lora-plus": {"key": "lora-plus", "rank": 4},  # two learning rates: two groups of torch's optimizer
    "dora": {"key": "dora", "rank": 4, "targets": ["attention"]},
    "adalora": {"key": "adalora", "init_rank": 4, "target_rank": 2, "tinit": 0.05, "tfinal": 0.1, "delta_t": 1},
    "full": {"key": "full"},
}
MEMORY = "[malloc] Unable to allocate 4096 bytes: not enough memory"
State = list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("undone") / "base", "qwen2")


def begun(backend: Backend, folder: Path, *keys: str, **training: Any) -> Session:
    """A session with an adapter of each method, that have learned for two steps."""
    session = backend.load(folder, "fp32", "cpu")
    for number, key in enumerate(keys):
        spec = parse_spec({"method": METHODS[key], "training": {"warmup": 0.0, "max_steps": 40, **training}}, "test")
        session.attach(f"{number}", make_plan(spec, folder), seed=number)
        session.prepare(f"{number}", spec.training)
    for number in range(2):
        step(session, number, len(keys))
    return session


def step(session: Session, number: int, adapters: int) -> list[tuple[float, float]]:
    session.seed(number)
    requests = [StepRequest(f"{one}", [batch_of(2, 16, seed=9 * number + one)], SFT, 1e-2) for one in range(adapters)]
    return [(result.loss, result.gradient_norm) for result in session.step_many(requests)]


def state_of(session: Session) -> State:
    return [(session.tensors(name), session.optimizer_state(name)) for name in session.adapters()]


def equal(one: State, other: State) -> bool:
    return all(
        a.keys() == b.keys() and all(a[key].tobytes() == b[key].tobytes() for key in a)
        for left, right in zip(one, other, strict=True)
        for a, b in zip(left, right, strict=True)
    )


@contextmanager
def failing(place: Any, name: str, call: int, error: BaseException) -> Iterator[list[int]]:
    """Within it the call-th call of a function does its work and then fails; gives what was called."""
    real: Callable[..., Any] = getattr(place, name)
    calls: list[int] = []

    def patched(*arguments: Any, **more: Any) -> Any:
        result = real(*arguments, **more)
        calls.append(1)
        if len(calls) == call:
            raise error
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, name, patched)
        yield calls


def writes(backend: Backend, optimizer: str) -> list[tuple[Any, str]]:
    """The functions that a step writes with: for a group of tensors, for an adapter, and for what comes after them."""
    module = importlib.import_module(f"finetune_local_backends.{backend.name}.training.optimizer")
    wrapped = importlib.import_module(f"finetune_local_backends.{backend.name}.layers.wrapped")
    if backend.name == "mlx":
        moments = importlib.import_module("finetune_local_backends.mlx.training.moments")
        kinds = [(moments.EightBit, "advance"), (moments.Full, "advance")]  # the small ones are never in 8 bits
        return [*kinds, (module.AdamW, "update"), (wrapped.MlxLayers, "after_step"), (Budget, "update")]
    if optimizer == "adamw-8bit":
        from bitsandbytes.optim.optimizer import Optimizer2State

        group: tuple[Any, str] = (Optimizer2State, "update_step")
    else:
        group = importlib.import_module("torch.optim.adam"), "adam"
    return [group, (module.Optimizer, "apply"), (wrapped.TorchLayers, "after_step"), (Budget, "update")]


CASES = [
    (("lora",), "adamw"),
    (("lora-plus",), "adamw"),
    (("lora",), "adamw-8bit"),
    (("adalora",), "adamw"),
    (("full",), "adamw"),
    (("full",), "adamw-8bit"),
    (("lora", "dora"), "adamw"),
]


@pytest.mark.parametrize(("keys", "optimizer"), CASES, ids=["+".join(keys) + "-" + name for keys, name in CASES])
def test_a_step_that_fails_at_any_write_changes_nothing(
    backend: Backend, tiny: Path, keys: tuple[str, ...], optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend.name == "mlx":
        monkeypatch.setattr("finetune_local_backends.mlx.training.optimizer.GROUP_BYTES", 1)  # each tensor is a group
    ours, undisturbed = (begun(backend, tiny, *keys, optimizer=optimizer) for _ in range(2))
    before, number = state_of(ours), 2
    failed = 0
    for place, name in writes(backend, optimizer):
        for call in (1, 2, 7, 1_000_000):
            error: Exception = MemoryError(MEMORY) if call != 2 else RuntimeError(MEMORY)
            try:
                with failing(place, name, call, error) as calls:
                    step(ours, number, len(keys))
            except OutOfMemory:
                failed += 1
                assert len(calls) >= call  # more where taking back calls it too
                assert equal(state_of(ours), before), f"{name}, call {call}"
                continue
            assert len(calls) < call  # there were not so many
            step(undisturbed, number, len(keys))
            number += 1
            assert equal(state_of(ours), state_of(undisturbed)), f"after {name}, call {call}"
            before = state_of(ours)
            break
    assert failed >= 2
    assert step(ours, number, len(keys)) == step(undisturbed, number, len(keys))
    assert equal(state_of(ours), state_of(undisturbed))


def test_a_step_that_is_interrupted_changes_nothing_either(backend: Backend, tiny: Path) -> None:
    ours = begun(backend, tiny, "lora", "lora")
    before = state_of(ours)
    place, name = writes(backend, "adamw")[1]
    with failing(place, name, 2, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        step(ours, 2, 2)
    assert equal(state_of(ours), before)


def test_what_cannot_be_taken_back_is_not_tried_again(
    backend: Backend, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model too large to be held twice: the error is none that the loop answers with smaller pieces."""
    monkeypatch.setattr(f"finetune_local_backends.{backend.name}.training.optimizer.affordable", lambda *_: False)
    ours = begun(backend, tiny, "full")
    place, name = writes(backend, "adamw")[1]
    with failing(place, name, 1, MemoryError(MEMORY)), pytest.raises(RunError, match="Resume the run") as caught:
        step(ours, 2, 1)
    assert not isinstance(caught.value, OutOfMemory)


def test_a_second_interruption_while_a_step_is_taken_back_ends_the_run() -> None:
    """Else what is half written would be saved as a checkpoint."""

    class Interrupted:
        def put_back(self) -> None:
            raise KeyboardInterrupt

    with pytest.raises(RunError, match="Resume the run"), all_or_nothing(Interrupted()):
        raise KeyboardInterrupt
