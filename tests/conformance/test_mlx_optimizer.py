"""8-bit AdamW on MLX against bitsandbytes' AdamW8bit on torch: the same indices, so nearly the same losses; how it is saved,
what memory it takes, and which optimizers a backend lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_local.backend import Backend
from finetune_local.spec.numerics import dynamic8
from finetune_local.spec.run import TrainingSettings
from finetune_local.system.errors import AdapterError
from mlx_tools import MLX, SFT, assert_same, ready, train
from tasks import batch_of, plan_of

import mlx.core as mx  # isort: skip # after mlx_tools, which skips this file where MLX is not installed

from finetune_local_backends.mlx import kernels as mlx_dynamic8  # isort: skip
from finetune_local_backends.mlx.training import moments  # isort: skip
from finetune_local_backends.mlx.device import start  # isort: skip
from finetune_local_backends.mlx.training.optimizer import AdamW  # isort: skip

EIGHT = {"optimizer": "adamw-8bit", "weight_decay": 0.1}
SHAPES = {"square": (80, 64), "uneven": (3, 2001), "long": (70_000,), "small": (4095,)}
PAGED = {"training.optimizer = paged-adamw": "adamw", "training.optimizer = paged-adamw-8bit": "adamw-8bit"}


@pytest.fixture(autouse=True)
def _on_the_cpu() -> None:
    start("cpu")


def gradients(seed: int) -> dict[str, np.ndarray]:
    """Of magnitudes that differ by powers of ten, as real ones do; some rows have none."""
    rng = np.random.default_rng(seed)
    made = {name: rng.normal(0, 1, shape) ** 3 * 1e-3 for name, shape in SHAPES.items()}
    made["square"][10:20] = 0
    return {name: value.astype(np.float32) for name, value in made.items()}


def made_optimizer(**settings: Any) -> tuple[AdamW, dict[str, mx.array]]:
    parameters = {name: mx.array(value * 100) for name, value in gradients(99).items()}
    return AdamW(parameters, TrainingSettings(**{**EIGHT, **settings}), {"long": 4.0}), parameters


def update(optimizer: AdamW, parameters: dict[str, mx.array], seed: int, factor: float = 1.0) -> None:
    optimizer.update(parameters, {n: mx.array(g) for n, g in gradients(seed).items()}, factor, 1e-3)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("count", [4096, 256, 5000, 255])
def test_indices_and_ranges_are_those_of_bitsandbytes(count: int, signed: bool) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    import torch

    table = functional.create_dynamic_map(signed=signed)
    np.testing.assert_array_equal(table.numpy(), dynamic8.levels(signed))
    values = np.random.default_rng(count).normal(0, 1, count).astype(np.float32) ** 5 * np.float32(1e-4)
    values[::7] = 0
    values[256:512] = 0
    if not signed:
        values = np.abs(values)
    codes, state = functional.quantize_blockwise(torch.from_numpy(values.copy()), table, blocksize=256)
    back = functional.dequantize_blockwise(codes, state).numpy()
    indices, ranges = mlx_dynamic8.quantise_8bit(mx.array(values), signed)
    for found, far in ((dynamic8.quantise(values, signed), "numpy"), ((np.array(indices), np.array(ranges)), "mlx")):
        np.testing.assert_array_equal(found[0], codes.numpy(), err_msg=far)
        np.testing.assert_array_equal(found[1], state.absmax.numpy(), err_msg=far)
    np.testing.assert_array_equal(np.array(mlx_dynamic8.dequantise_8bit(indices, ranges, signed)), back)


def test_ranges_too_small_to_divide_by_are_zero() -> None:
    indices, ranges = mlx_dynamic8.quantise_8bit(mx.array(np.full(300, 1e-40, np.float32)))
    np.testing.assert_array_equal(np.array(mlx_dynamic8.dequantise_8bit(indices, ranges)), np.zeros(300))


def test_twenty_updates_are_those_of_bitsandbytes() -> None:
    optim = pytest.importorskip("bitsandbytes.optim")
    import torch

    optimizer, parameters = made_optimizer()
    theirs = {name: torch.nn.Parameter(torch.from_numpy(np.array(p))) for name, p in parameters.items()}
    groups = [{"params": [p], "lr": 4e-3 if name == "long" else 1e-3} for name, p in theirs.items()]
    reference = optim.AdamW8bit(groups, weight_decay=0.1)
    for seed in range(20):
        update(optimizer, parameters, seed, factor=0.5)
        for name, gradient in gradients(seed).items():
            theirs[name].grad = torch.from_numpy(gradient * np.float32(0.5))
        reference.step()
    state = optimizer.state()
    for name, parameter in theirs.items():
        kept = reference.state[parameter]
        # The last bit of a sum may fall on the other side of a rounding: the next index, in one of thousands.
        off = np.abs(np.array(parameters[name]) - parameter.detach().numpy())
        assert (off > 1e-5).mean() < 1e-3 and off.max() < 1e-3, (name, off.max())
        for ours, slot, absmax in (("exp_avg", "state1", "absmax1"), ("exp_avg_sq", "state2", "absmax2")):
            found, wanted = state[f"{ours}.{name}"], kept[slot].numpy()
            if name == "small":
                assert found.dtype == np.float32
                np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-9)
                continue
            assert found.dtype == wanted.dtype == np.uint8
            far = np.abs(found.astype(int) - wanted.astype(int))
            assert (far > 0).mean() < 1e-3, (name, slot, (far > 0).mean())
            np.testing.assert_allclose(state[f"{ours}_absmax.{name}"], kept[absmax].numpy(), rtol=1e-5)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_twenty_losses_are_those_of_torch(tiny: Path, method: str) -> None:
    pytest.importorskip("bitsandbytes")
    from torch_tools import TORCH

    settings: dict[str, Any] = {} if method == "full" else {"rank": 64, "alpha": 64.0, "targets": ["mlp"]}
    losses = []
    for backend in (TORCH, MLX):
        session = backend.load(tiny, "fp32", "cpu")
        session.attach("a", plan_of(tiny, method, **settings), seed=7)
        session.prepare("a", TrainingSettings(**EIGHT))
        losses.append([session.step([batch_of(seed=i % 4)], SFT, 1e-3).loss for i in range(20)])
        assert np.uint8 in {value.dtype.type for value in session.optimizer_state().values()}
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-3)
    assert losses[0][-1] < losses[0][0] - 0.3


def test_it_differs_from_full_states_and_stays_near(tiny: Path) -> None:
    eight, full = ready(tiny, "full", training=EIGHT), ready(tiny, "full", training={"weight_decay": 0.1})
    found, wanted = train(eight, 8), train(full, 8)
    assert found != wanted
    np.testing.assert_allclose(found, wanted, atol=0.02)


def test_going_on_from_8_bit_states_is_exact(tiny: Path) -> None:
    whole = ready(tiny, "full", training=EIGHT)
    losses = train(whole, 6)
    first = ready(tiny, "full", training=EIGHT)
    assert train(first, 3) == losses[:3]
    second = MLX.load(tiny, "fp32", "cpu")
    second.attach("a", plan_of(tiny, "full"), 0, first.tensors("a"))
    second.prepare("a", TrainingSettings(**EIGHT))
    state = first.optimizer_state()
    second.restore_optimizer(state)
    assert_same(second.optimizer_state(), state)  # type: ignore[arg-type]
    assert train(second, 3, first=3) == losses[3:]
    assert_same(second.tensors("a"), whole.tensors("a"))
    assert_same(second.optimizer_state(), whole.optimizer_state())  # type: ignore[arg-type]


def test_states_of_another_kind_are_refused(tiny: Path) -> None:
    eight, full = ready(tiny, "full", training=EIGHT), ready(tiny, "full")
    train(eight, 1)
    before = eight.optimizer_state()
    with pytest.raises(AdapterError, match="another optimizer or adapter"):
        eight.restore_optimizer(full.optimizer_state())
    with pytest.raises(AdapterError, match="another optimizer or adapter"):
        full.restore_optimizer(before)
    name = next(name for name, value in before.items() if value.dtype == np.uint8)
    with pytest.raises(AdapterError, match=r"of float32, expected .* of uint8\. Resume"):
        eight.restore_optimizer({**before, name: before[name].astype(np.float32)})
    assert_same(eight.optimizer_state(), before)  # type: ignore[arg-type]


def test_a_rate_of_its_own_moves_a_tensor_further() -> None:
    optimizer, parameters = made_optimizer()
    before = {name: np.array(p) for name, p in parameters.items()}
    update(optimizer, parameters, 0)
    for name, gradient in gradients(0).items():  # AdamW's first update: decay, then the rate by the sign
        rate = 4e-3 if name == "long" else 1e-3
        clear = np.abs(gradient) > 1e-5
        wanted = before[name] * (1 - rate * 0.1) - rate * np.sign(gradient)
        np.testing.assert_allclose(np.array(parameters[name])[clear], wanted[clear], atol=1e-5)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parameters = made_optimizer()
    monkeypatch.setattr(moments, "_CHUNK", 1024)
    chunked, others = made_optimizer()
    for seed in range(3):
        monkeypatch.setattr(moments, "_CHUNK", 1 << 20)
        update(whole, parameters, seed)
        monkeypatch.setattr(moments, "_CHUNK", 1024)
        update(chunked, others, seed)
    assert_same({n: np.array(p) for n, p in parameters.items()}, {n: np.array(p) for n, p in others.items()})
    assert_same(whole.state(), chunked.state())  # type: ignore[arg-type]


def test_states_take_two_bytes_a_number_and_an_update_little_more() -> None:
    count = 1 << 22
    sizes, peaks = {}, {}
    for name in ("adamw", "adamw-8bit"):
        parameters = {"w": mx.ones((count // 64, 64))}
        optimizer = AdamW(parameters, TrainingSettings(optimizer=name))  # type: ignore[arg-type]
        for _ in range(2):
            slopes = {"w": mx.random.normal((count // 64, 64))}
            mx.eval(slopes, parameters)
            mx.clear_cache()
            before = mx.get_active_memory()
            mx.reset_peak_memory()
            optimizer.update(parameters, slopes, 1.0, 1e-3)
        sizes[name] = sum(value.nbytes for value in optimizer.state().values()) / count
        peaks[name] = (mx.get_peak_memory() - before) / count
    assert sizes["adamw"] == pytest.approx(8, abs=1e-4)
    assert sizes["adamw-8bit"] == pytest.approx(2 + 8 / 256, abs=1e-4)
    # The new parameter (4), its new indices (2) and a quarter of what is computed on the way.
    assert peaks["adamw-8bit"] < 20 < peaks["adamw"]


def test_a_backend_lacks_only_what_it_cannot_have(backend: Backend) -> None:
    """One memory has nothing to page to; bitsandbytes has no affine groups. Nothing else is missing."""
    found = {(f"{gap.setting} = {gap.value}", gap.device, gap.instead) for gap in backend.gaps()}
    where = "cpu" if backend.name == "torch" else ""
    expected: set[tuple[str, str, object]] = {(setting, where, instead) for setting, instead in PAGED.items()}
    if backend.name == "torch":
        expected.add(("model.quantisation = affine", "", "nf4"))
    assert found == expected
    assert not any(gap.reason.endswith(".") for gap in backend.gaps())  # the sentence is ended where it is told
