"""The torch backend against plain PEFT, against finite differences, and against itself cut up in other ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the torch backend is not installed")
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from conforming import gradients_of
from finetune_local.spec.batch import Batch
from finetune_local_backends.torch import kernels
from finetune_local_backends.torch.base import attention
from tasks import batch_of, pieces, plan_of
from tiny import FAMILIES, MORE_FAMILIES, tiny_model
from torch_tools import PLAIN_PEFT, RATE, SFT, TORCH, plain_loss, plain_peft, ready, train


@PLAIN_PEFT
@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("extra", [{}, {"scaling": "rslora", "alpha": 6.0, "targets": ("attention",)}])
def test_twenty_steps_equal_a_plain_peft_loop(tiny: Path, method: str, extra: dict[str, Any]) -> None:
    ours = ready(tiny, method, training={"weight_decay": 0.01}, **extra)
    model = plain_peft(tiny, plan_of(tiny, method, **extra), ours.tensors("a"))
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.01)
    theirs = []
    for i in range(20):
        loss = plain_loss(model, batch_of(seed=i % 4))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        theirs.append(float(loss.detach()))
    losses = train(ours, 20)
    assert losses[-1] < losses[0] - 0.1, "nothing was learnt, so the comparison says nothing"
    np.testing.assert_allclose(losses, theirs, atol=1e-5)


@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES])
def test_loss_and_score_equal_the_model_s_own_in_every_family(tmp_path: Path, family: str) -> None:
    folder = tiny_model(tmp_path / family, family)
    ours = ready(folder)
    batch = batch_of(length=90)  # longer than the tiny models' sliding window
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        wanted = float(plain_loss(model, batch))
    assert -float(ours.score(batch).mean()) == pytest.approx(wanted, abs=2e-5)
    assert ours.step([batch], SFT, 0.0).loss == pytest.approx(wanted, abs=2e-5)


def test_full_training_equals_a_plain_loop_over_all_weights(tiny: Path) -> None:
    ours = ready(tiny, "full")
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    theirs = []
    for i in range(10):
        loss = plain_loss(model, batch_of(seed=i % 4))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        theirs.append(float(loss.detach()))
    np.testing.assert_allclose(train(ours, 10), theirs, atol=2e-5)
    ours.activate(None)
    bare = TORCH.load(tiny, "fp32", "cpu")
    np.testing.assert_array_equal(ours.logits([5, 6, 7]), bare.logits([5, 6, 7]))


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_gradient_equals_finite_differences(tiny: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = ready(tiny, method)
    train(ours, 3)  # B is zero before, and A has no gradient then
    batch, real, norms = batch_of(), kernels.row_norms, {}

    def constant(*args: Any) -> torch.Tensor:
        """DoRA's norm is a constant to the gradient by definition, so it is one to the differences too."""
        return norms.setdefault(args[4].data_ptr(), real(*args))

    monkeypatch.setattr(kernels, "row_norms", constant)
    gradients = gradients_of(ours, batch)
    rng = np.random.default_rng(0)
    kinds = {}
    for name, parameter in ours._adapters["a"].parameters.items():  # type: ignore[attr-defined]
        kinds[name.rsplit("lora_", 1)[-1]] = name, parameter
    assert len(kinds) == (3 if method == "dora" else 2)
    for name, parameter in kinds.values():
        parameter.grad = torch.from_numpy(gradients[name])
        direction = torch.from_numpy(rng.normal(size=tuple(parameter.shape)).astype(np.float32))
        direction = direction / direction.norm() + parameter.grad / parameter.grad.norm()
        start, ends = parameter.detach().clone(), []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.copy_(start + sign * 1e-2 * direction)
            ends.append(-float(ours.score(batch).astype(np.float64).mean()))
        slope = float((parameter.grad * direction).sum())
        assert abs(slope) > 1e-3, "too flat to say anything"
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-2, rel=0.01), name
        with torch.no_grad():
            parameter.copy_(start)


@PLAIN_PEFT
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_dropout_is_peft_s(tiny: Path, method: str) -> None:
    extra: dict[str, Any] = {"dropout": 0.4, "targets": ("down_proj",), "layers": "last:1"}
    ours = ready(tiny, method, **extra)
    train(ours, 3)
    theirs = plain_peft(tiny, plan_of(tiny, method, **extra), ours.tensors("a"))
    module = "model.layers.1.mlp.down_proj"
    layers = ours._base.model.get_submodule(module), theirs.get_submodule(f"base_model.model.{module}")  # type: ignore[attr-defined]
    layers[0].layers.layer.train()  # outside a step no adapter layer drops anything
    x = torch.randn(5, layers[0].in_features)
    made = []
    for layer in layers:
        layer.train()
        torch.manual_seed(3)
        given = x.clone().requires_grad_()
        y = layer(given)
        y.square().sum().backward()
        assert given.grad is not None
        made.append((y.detach(), given.grad))
    for mine, other in zip(*made, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_dropout_keeps_no_dense_copy_of_a_quantised_weight(tiny: Path, method: str) -> None:
    ours = ready(tiny, method, "4-bit", dropout=0.1)
    kept: set[tuple[int, ...]] = set()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.add(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ours.step([batch_of()], SFT, RATE)
    weights = {(t.out_features, t.in_features) for t in plan_of(tiny, method).targets}
    assert kept
    assert not kept & (weights | {(b, a) for a, b in weights})


def test_padding_changes_no_log_probability(tiny: Path) -> None:
    ours = ready(tiny)
    train(ours, 2)
    batch = batch_of(rows=5)
    together = ours.score(batch)
    alone = np.concatenate([ours.score(piece) for piece in pieces(batch, 1)])
    np.testing.assert_allclose(together, alone, atol=2e-6)
    junk = Batch(
        np.where(np.arange(20) < batch.lengths[:, None], batch.ids, 9).astype(np.int32), batch.lengths, batch.mask
    )
    np.testing.assert_array_equal(together, ours.score(junk))


def test_four_micro_batches_equal_one(tiny: Path) -> None:
    one, four = ready(tiny, "dora"), ready(tiny, "dora")
    for i in range(5):
        batch = batch_of(rows=4, seed=i)
        whole, parts = one.step([batch], SFT, RATE), four.step(pieces(batch, 1), SFT, RATE)
        assert parts.loss == pytest.approx(whole.loss, abs=1e-6)
        assert parts.gradient_norm == pytest.approx(whole.gradient_norm, rel=1e-4)


@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.25, None), (1.0, 3.0), (2.0, 5.0)])
@pytest.mark.parametrize("trained_head", [False, True])
def test_chunked_head_equals_log_softmax(
    scale: float, cap: float | None, trained_head: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "CHUNK_NUMBERS", 300)  # three rows a chunk
    torch.manual_seed(0)
    hidden = torch.randn(10, 16, requires_grad=True)
    weight = torch.randn(100, 16, requires_grad=trained_head)
    bias = torch.randn(100, requires_grad=trained_head)
    targets = torch.randint(100, (10,))
    pull = torch.randn(10)

    def plain() -> torch.Tensor:
        logits = functional.linear(hidden, weight, bias) * scale
        logits = logits if cap is None else torch.tanh(logits / cap) * cap
        return functional.log_softmax(logits, 1).gather(1, targets[:, None])[:, 0]

    leaves = [hidden, weight, bias] if trained_head else [hidden]
    wanted = plain()
    gradients = torch.autograd.grad((wanted * pull).sum(), leaves)
    got = kernels.TokenLogProbs.apply(hidden, weight, bias, targets, scale, cap, True)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    ours = torch.autograd.grad((got * pull).sum(), leaves)
    for mine, theirs in zip(ours, gradients, strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_low_rank_kernel_equals_autograd(dora: bool, with_bias: bool) -> None:
    torch.manual_seed(0)
    base = torch.nn.Linear(12, 20, bias=with_bias).requires_grad_(False)
    leaves = [torch.randn(2, 5, 12), torch.randn(4, 12), torch.randn(20, 4)] + ([torch.rand(20)] if dora else [])
    for leaf in leaves:
        leaf.requires_grad_()
    x, a, b = leaves[:3]
    magnitude = leaves[3] if dora else None
    with torch.no_grad():
        norm = kernels.row_norms(base.weight, a, b, 0.7, base.weight.square().sum(1)) if dora else None
        torch.testing.assert_close(norm, (base.weight + 0.7 * b @ a).norm(dim=1) if dora else None)
    plain = kernels.low_rank_plain(x, x, a, b, magnitude, norm, 0.7, base)
    fast = kernels.LowRankLinear.apply(x, a, b, magnitude, norm, 0.7, base)
    torch.testing.assert_close(fast, plain)
    pull = torch.randn_like(plain)
    for mine, theirs in zip(
        torch.autograd.grad((fast * pull).sum(), leaves), torch.autograd.grad((plain * pull).sum(), leaves), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (4, 1)])
def test_attention_kernel_equals_torch_s(heads: tuple[int, int]) -> None:
    torch.manual_seed(0)
    leaves = [torch.randn(3, count, 11, 8, requires_grad=True) for count in (heads[0], heads[1], heads[1])]
    wanted = functional.scaled_dot_product_attention(*leaves, is_causal=True, scale=0.3, enable_gqa=True)
    got = attention.CausalAttention.apply(*leaves, 0.3)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    pull = torch.randn_like(wanted)
    for mine, theirs in zip(
        torch.autograd.grad((got * pull).sum(), leaves), torch.autograd.grad((wanted * pull).sum(), leaves), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_bf16_follows_fp32(tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, real = [], attention.CausalAttention.apply
    monkeypatch.setattr(attention.CausalAttention, "apply", lambda *args: calls.append(1) or real(*args))
    folder = tiny_model(tmp_path / family, family)
    batches = [batch_of(length=90)]
    whole, half = (train(ready(folder, precision=precision), 8, batches) for precision in ("fp32", "bf16"))
    assert calls, "the bf16 kernel was not used"
    assert whole[-1] < whole[0] - 0.3
    np.testing.assert_allclose(half, whole, atol=0.05)
