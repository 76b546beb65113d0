"""NF4 on MLX against bitsandbytes on torch: the same numbers, so the same losses and adapters over one quantised base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny as tiny_models
from conforming import make_plan
from finetune_local.backend import Backend, Session
from finetune_local.inference.engine import open_chat
from finetune_local.spec.numerics import dynamic8, nf4
from finetune_local.spec.run import TrainingSettings, parse_spec
from finetune_local.system.errors import SpecError, Unsupported
from finetune_local.system.paths import Home
from finetune_local.training.check import check_before_loading
from finetune_local.training.run_folder import runs
from finetune_local.training.setup import Ready, make_ready
from made import made_adapter
from mlx_tools import IDS, MLX, SFT
from tasks import batch_of, plan_of
from tiny import tiny_model
from torch_tools import TORCH

bitsandbytes = pytest.importorskip("bitsandbytes")

SHAPES = [(64, 64), (48, 40), (7, 62), (130, 66), (1, 2), (3, 10), (300, 700), (96, 80), (1536, 576)]


def dense_of(layer: Any) -> np.ndarray:
    import mlx.core as mx

    return np.array(layer.dense(mx.float32))


def both(folder: Path) -> tuple[Session, Session]:
    return TORCH.load(folder, "4-bit", "cpu", quantisation="nf4"), MLX.load(folder, "4-bit", "cpu", quantisation="nf4")


def assert_is_bitsandbytes(weight: np.ndarray) -> None:
    import torch

    codes, state = bitsandbytes.functional.quantize_4bit(
        torch.from_numpy(weight), blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    packed = nf4.quantise(weight)
    np.testing.assert_array_equal(packed.codes, codes.numpy().reshape(-1))
    np.testing.assert_array_equal(packed.scales, state.absmax.numpy())
    np.testing.assert_array_equal(packed.ranges, state.state2.absmax.numpy())
    assert packed.offset == state.offset.item()
    state.shape = torch.Size(
        (1, weight.size)
    )  # its CPU kernel is right for whole blocks only: see torch/base/quantised.py
    dense = bitsandbytes.functional.dequantize_4bit(codes, state).numpy().reshape(weight.shape)
    np.testing.assert_array_equal(nf4.dequantise(packed), dense)


@pytest.mark.parametrize("shape", SHAPES)
def test_each_stored_number_is_bitsandbytes(shape: tuple[int, int]) -> None:
    """Also of tensors that are no whole blocks of 64 weights or 256 scales, where rows and blocks do not fall together."""
    for seed in range(4):
        rng = np.random.default_rng(seed)
        assert_is_bitsandbytes(rng.normal(0, 0.05, shape).astype(np.float32))
        assert_is_bitsandbytes(rng.standard_t(2, shape).astype(np.float32))  # a few weights far out


def test_ties_zeros_and_extremes_are_bitsandbytes_too() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(64, 64)).astype(np.float32)
    middles = (nf4.TABLE[1:] + nf4.TABLE[:-1]) / 2
    some_zero = weight.copy()
    some_zero[3] = 0
    whole = np.round(4 * rng.normal(size=(256, 256))).astype(np.float32)
    ties = rng.choice(np.concatenate([middles, [1.0]]).astype(np.float32), (64, 64))
    for case in (some_zero, np.zeros_like(weight), np.ones_like(weight), whole, ties, weight * 1e-30, weight * 1e30):
        assert_is_bitsandbytes(case.astype(np.float32))
    for largest in rng.uniform(0.01, 1, 200).astype(np.float32):  # a block that is not whole is divided in another way
        assert_is_bitsandbytes(np.concatenate([[largest], largest * middles]).astype(np.float32)[None])


def test_scales_are_rounded_as_bitsandbytes_does() -> None:
    import torch

    for seed in range(5):
        values = np.random.default_rng(seed).uniform(-1, 1, 200_000).astype(np.float32)
        codes, state = bitsandbytes.functional.quantize_blockwise(torch.from_numpy(values.copy()), blocksize=256)
        found, ranges = dynamic8.quantise(values)
        np.testing.assert_array_equal(found, codes.numpy())
        np.testing.assert_array_equal(ranges, state.absmax.numpy())


def test_the_mean_is_torchs() -> None:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for size in (*range(1, 200), 1000, 13824, 32767, 100_003, 262_144):
            values = np.random.default_rng(size).uniform(0, 1, size).astype(np.float32)
            assert nf4.mean(values) == torch.from_numpy(values).mean().item(), size
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("family", "hidden", "inner"), [("qwen2", 64, 128), ("llama", 52, 90), ("llama", 80, 112)])
def test_every_weight_of_a_model_is_the_same_on_both(
    tmp_path: Path, family: str, hidden: int, inner: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(tiny_models, "HIDDEN", hidden)
    monkeypatch.setattr(tiny_models, "INTERMEDIATE", inner)
    folder = tiny_model(tmp_path / "模型 model", family)
    one, other = both(folder)
    targets = plan_of(folder).targets
    assert len(targets) == 14
    modules = dict(one._base.model.named_modules())  # type: ignore[attr-defined]
    model = other.model  # type: ignore[attr-defined]
    for target in targets:
        layer, dense = model.linear(target).get(), modules[target.module].dense(torch.float32).numpy()
        assert type(layer).__name__ == "Nf4Linear"
        np.testing.assert_array_equal(dense_of(layer), dense)
        np.testing.assert_array_equal(np.array(model.dense(target.module + ".weight")), dense)
    np.testing.assert_allclose(one.logits(IDS), other.logits(IDS), atol=1e-4)
    if hidden == 64:  # MLX's own groups do not divide the others
        assert np.abs(MLX.load(folder, "4-bit", "cpu").logits(IDS) - one.logits(IDS)).max() > 0.1


def test_a_bf16_base_is_rounded_as_bitsandbytes_rounds_it() -> None:
    import mlx.core as mx
    import torch
    from mlx import nn

    from finetune_local_backends.mlx.base.quantised import Nf4Linear

    weight = torch.randn(80, 128, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    codes, state = bitsandbytes.functional.quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
    wanted = bitsandbytes.functional.dequantize_4bit(codes, state)
    plain = nn.Linear(128, 80, bias=False)
    plain.weight = mx.array(weight.float().numpy()).astype(mx.bfloat16)
    found = Nf4Linear(plain).dense(mx.bfloat16)
    assert wanted.dtype == torch.bfloat16 and found.dtype == mx.bfloat16
    np.testing.assert_array_equal(np.array(found.astype(mx.float32)), wanted.float().numpy())


def learn(session: Session, folder: Path, method: str, start: Any, checkpointed: bool) -> list[float]:
    session.attach("a", plan_of(folder, method), 7, start)
    session.prepare("a", TrainingSettings(gradient_checkpointing=checkpointed))
    losses = []
    for step in range(20):
        session.seed(step)
        losses.append(session.step([batch_of(seed=step % 4)], SFT, 5e-3).loss)
    return losses


@pytest.mark.parametrize(("method", "checkpointed"), [("lora", False), ("lora", True), ("dora", False)])
def test_one_base_gives_one_curve_and_adapters_cross(tmp_path: Path, method: str, checkpointed: bool) -> None:
    folder = tiny_model(tmp_path, "qwen2")
    one, other = both(folder)
    fresh = one.logits(IDS), other.logits(IDS)
    one.attach("start", plan_of(folder, method), 7)
    start = one.tensors("start")
    one.detach("start")
    ours = learn(one, folder, method, start, checkpointed)
    theirs = learn(other, folder, method, start, checkpointed)
    assert ours[-1] < ours[0] - 0.5
    assert np.abs(np.array(ours) - theirs).max() < 1e-5
    for trained, session in ((one, both(folder)[1]), (other, both(folder)[0])):
        session.attach("b", plan_of(folder, method), 0, trained.tensors("a"))
        np.testing.assert_allclose(session.logits(IDS), trained.logits(IDS), atol=1e-4)
        assert np.abs(session.logits(IDS) - fresh[0]).max() > 0.1
    for session, before in zip((one, other), fresh, strict=True):
        session.activate(None)
        np.testing.assert_array_equal(session.logits(IDS), before)


def test_memory_is_that_of_the_packed_weights() -> None:
    from mlx import nn

    from finetune_local_backends.mlx.base.quantised import Nf4Linear

    layer = Nf4Linear(nn.Linear(512, 640))
    bits = 8 * sum(array.nbytes for array in layer.parameters().values() if array is not layer.bias) / (512 * 640)
    assert bits == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-3)


def test_no_dense_weight_is_kept_for_the_backward_pass() -> None:
    import mlx.core as mx
    from mlx import nn

    from finetune_local_backends.mlx.base.quantised import Nf4Linear

    width, deep = 512, 24
    layers = [Nf4Linear(nn.Linear(width, width, bias=False)) for _ in range(deep)]
    dense = 4 * width * width

    def through(x: mx.array) -> mx.array:
        for layer in layers:
            x = mx.tanh(layer(x))
        return x.sum()

    x = mx.ones((4, width))
    mx.eval(x, [layer.parameters() for layer in layers])
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(mx.grad(through)(x))
    assert mx.get_peak_memory() - before < 16 * dense  # of 24 layers, as many as MLX has under way at once


def test_the_gradient_is_that_of_the_dense_weight() -> None:
    import mlx.core as mx
    from mlx import nn

    from finetune_local_backends.mlx.base.quantised import Nf4Linear

    layer = Nf4Linear(nn.Linear(40, 24))
    x, weight = mx.random.normal((5, 40)), layer.dense(mx.float32)
    found = mx.grad(lambda x: mx.sin(layer(x)).sum())(x)
    wanted = mx.grad(lambda x: mx.sin(x @ weight.T + layer.bias).sum())(x)
    np.testing.assert_allclose(np.array(found), np.array(wanted), atol=1e-6)


@pytest.mark.parametrize(("backend", "asked", "taken"), [(TORCH, "auto", "nf4"), (MLX, "auto", "affine"),
                                                         (TORCH, "nf4", "nf4"), (MLX, "nf4", "nf4")])  # fmt: skip
def test_the_kind_is_settled_before_anything_is_loaded(
    home: Home, tiny: Path, tmp_path: Path, backend: Backend, asked: str, taken: str
) -> None:
    spec = spec_for(tiny, tmp_path, backend, quantisation=asked)
    settled, notes = check_before_loading(spec, home, lambda *_: None)
    assert settled.model.quantisation == taken
    assert any(note.text.startswith(f"model.quantisation = {taken}") for note in notes) == (asked == "auto")


def test_what_is_senseless_is_refused(home: Home, tiny: Path, tmp_path: Path) -> None:
    from finetune_local_backends.mlx.base import load

    for precision in ("bf16", "8-bit", None):
        with pytest.raises(SpecError, match=r"--quantisation nf4 .* not loaded in 4 bits\. Add --precision 4-bit"):
            spec_for(tiny, tmp_path, MLX, precision=precision, quantisation="nf4")
    affine = spec_for(tiny, tmp_path, TORCH, quantisation="affine")
    with pytest.raises(Unsupported, match=r"affine .*bitsandbytes.* Use nf4"):
        check_before_loading(affine, home, lambda *_: None)
    with pytest.raises(Unsupported, match="--quantisation nf4"):
        TORCH.load(tiny, "4-bit", "cpu", quantisation="affine")
    with pytest.raises(Unsupported, match=r"layers\.0\.mlp is a SwitchLinear.*--quantisation affine"):
        load._nf4("layers.0.mlp", type("SwitchLinear", (), {})())


def write_rows(folder: Path, count: int) -> Path:
    path = folder / f"{count} rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"a{i}", "completion": "b"}) + "\n" for i in range(count)), "utf-8")
    return path


def spec_for(folder: Path, tmp_path: Path, backend: Backend, precision: str | None = "4-bit", **model: Any) -> Any:
    data = write_rows(tmp_path, 1)
    tables = {"model": {"id": str(folder), "precision": precision, **model}, "data": {"files": [str(data)]}}
    return parse_spec({**tables, "backend": backend.name, "device": "cpu"}, "test")


def test_a_run_is_loaded_with_the_kind_it_asks_for(home: Home, tiny: Path, tmp_path: Path) -> None:
    spec = spec_for(tiny, tmp_path, MLX, quantisation="nf4")
    data = spec.data.model_copy(update={"files": (str(write_rows(tmp_path, 8)),), "validation": 0.0})
    spec, _ = check_before_loading(spec.model_copy(update={"data": data}), home, lambda *_: None)
    ready = next(e for e in make_ready(runs.create(home, spec), home) if isinstance(e, Ready))
    np.testing.assert_array_equal(
        base_logits(ready.session), MLX.load(tiny, "4-bit", "cpu", quantisation="nf4").logits(IDS)
    )


def base_logits(session: Session) -> np.ndarray:
    session.activate(None)
    return session.logits(IDS)


def test_an_adapter_is_opened_over_the_base_it_was_trained_on(home: Home, tiny: Path) -> None:
    """Trained on torch's NF4, answered on MLX: NF4 there too. Without a word on it MLX takes its own kind."""
    run = home.runs / "四 bits"
    adapter = made_adapter(tiny, run / "adapter")
    plan = make_plan(parse_spec({"method": {"key": "lora", "rank": 2}}, "test"), tiny)
    for kind in ("nf4", "affine"):
        (run / "run.json").write_text(json.dumps({"model": {"precision": "4-bit", "quantisation": kind}}), "utf-8")
        opened = open_chat(home, str(tiny), [str(adapter)], backend="mlx")
        plain = MLX.load(tiny, "4-bit", quantisation=kind)
        plain.attach("a", plan, 0, opened.session.tensors(opened.session.adapters()[0]))
        np.testing.assert_array_equal(opened.session.logits(IDS), plain.logits(IDS))
    other = open_chat(home, str(tiny), [str(adapter)], backend="torch")
    assert other.session.precision == "4-bit"
