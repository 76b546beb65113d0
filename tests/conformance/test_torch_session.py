"""The torch backend as a session: resuming, swapping, precisions, what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the torch backend is not installed")
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from finetune_local.adapter_format import write_adapter
from finetune_local.backend import Session
from finetune_local.spec.batch import Batch, Readout
from finetune_local.spec.objectives import Objective
from finetune_local.spec.run import TrainingSettings
from finetune_local.spec.tuners import tuners
from finetune_local.system.errors import AdapterError, ModelError, OutOfMemory, Unsupported
from finetune_local_backends.torch import decoder as head_module
from finetune_local_backends.torch import session
from finetune_local_backends.torch.device import GAPS
from finetune_local_backends.torch.layers import wrapped
from tasks import batch_of, pieces, plan_of
from tiny import FAMILIES, MORE_FAMILIES, tiny_model
from torch_tools import PLAIN_PEFT, RATE, SFT, TORCH, ready, train


@pytest.mark.parametrize("optimizer", ["adamw", "adamw-8bit"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_resumed_session_goes_on_bit_for_bit(tiny: Path, optimizer: str, method: str) -> None:
    training = {"optimizer": optimizer, "weight_decay": 0.1}
    ours = ready(tiny, method, training=training)
    train(ours, 3)
    tensors, state = ours.tensors("a"), ours.optimizer_state()
    again = TORCH.load(tiny, "fp32", "cpu")
    again.attach("b", plan_of(tiny, method), seed=99, tensors=tensors)
    again.prepare("b", TrainingSettings(**training))
    again.restore_optimizer(state)
    for key, value in again.optimizer_state().items():
        np.testing.assert_array_equal(value, state[key], err_msg=key)
    assert train(again, 4) == train(ours, 4)
    for key, value in again.tensors("b").items():
        np.testing.assert_array_equal(value, ours.tensors("a")[key], err_msg=key)
    with pytest.raises(AdapterError, match="optimizer's saved state"):
        again.restore_optimizer(
            {key: value for key, value in state.items() if "lora_B" not in key and "norm" not in key}
        )


def test_dropout_comes_from_the_step_s_seed(tiny: Path) -> None:
    def losses(*seeds: int, checkpointing: bool = False) -> list[float]:
        ours = ready(tiny, dropout=0.5, training={"gradient_checkpointing": checkpointing})
        result = []
        for seed in seeds:
            torch.rand(3)  # what happened between the steps does not matter
            ours.seed(seed)
            result.append(ours.step([batch_of()], SFT, RATE).loss)
        np.testing.assert_array_equal(ours.score(batch_of()), ours.score(batch_of()))
        return result

    assert losses(1, 2, 3) == losses(1, 2, 3)
    assert losses(1, 2, 3)[2] != losses(1, 2, 4)[2]
    np.testing.assert_allclose(losses(1, 2, 3), losses(1, 2, 3, checkpointing=True), atol=1e-6)


def test_gradient_checkpointing_changes_nothing(tiny: Path) -> None:
    for method in ("lora", "full"):
        plain, twice = ready(tiny, method), ready(tiny, method, training={"gradient_checkpointing": True})
        np.testing.assert_allclose(train(twice, 4), train(plain, 4), atol=1e-6)
    calls = []
    layer = twice._base.body.layers[0]  # type: ignore[attr-defined]
    layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    train(twice, 1)
    assert len(calls) == 2, "activations were not computed twice"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("std::bad_alloc"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")])  # fmt: skip
@pytest.mark.parametrize("method", ["lora", "full"])
def test_out_of_memory_leaves_everything_as_it_was(
    tiny: Path, error: Exception, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, undisturbed = ready(tiny, method), ready(tiny, method)
    train(ours, 2)
    train(undisturbed, 2)
    parts = pieces(batch_of(seed=9), 2)
    real, count = session.TorchSession._read, []

    def failing(self: Any, *read: Any) -> Any:
        count.append(1)
        if len(count) == 2:
            raise error
        return real(self, *read)

    with monkeypatch.context() as patch:
        patch.setattr(session.TorchSession, "_read", failing)
        with pytest.raises(OutOfMemory, match="micro-batch-tokens"):
            ours.step(parts, SFT, RATE)
    assert len(count) == 2
    assert ours.step(parts, SFT, RATE) == undisturbed.step(parts, SFT, RATE)
    assert train(ours, 2) == train(undisturbed, 2)


def test_a_loss_that_is_not_finite_is_returned_and_not_applied(tiny: Path) -> None:
    class Broken(Objective):
        key, title = "broken", "Broken"

        def loss(self, ops: Any, readout: Readout, batch: Batch, total: float) -> Any:
            return ops.sum(readout.logprobs) * float("nan")

    ours, undisturbed = ready(tiny), ready(tiny)
    train(ours, 1)
    train(undisturbed, 1)
    assert not np.isfinite(ours.step([batch_of()], Broken(), RATE).loss)
    assert train(ours, 2) == train(undisturbed, 2)


@pytest.mark.parametrize("precision", ["4-bit", "8-bit", "bf16"])
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_other_precisions_train(tiny: Path, precision: str, method: str) -> None:
    ours = ready(tiny, method, precision)
    whole = TORCH.load(tiny, "fp32", "cpu").logits([5, 6, 7, 8])
    ours.activate(None)
    gap = np.abs(ours.logits([5, 6, 7, 8]) - whole).max() / np.abs(whole).max()
    assert 0 < gap < {"4-bit": 0.5, "8-bit": 0.05, "bf16": 0.05}[precision]
    before = ours.score(batch_of())  # inference first: it must not spoil the weights for training
    ours.activate("a")
    losses = train(ours, 12, [batch_of()])
    assert losses[-1] < losses[0] - 0.1
    assert all(value.dtype == np.float32 for value in ours.tensors("a").values())
    assert np.abs(ours.score(batch_of()) - before).max() > 0.01
    ours.activate(None)
    np.testing.assert_array_equal(ours.score(batch_of()), before)


def test_quantised_weights_are_bitsandbytes_own(tiny: Path) -> None:
    import bitsandbytes

    for precision in ("4-bit", "8-bit"):
        layer = TORCH.load(tiny, precision, "cpu")._base.body.layers[0].mlp.up_proj  # type: ignore[attr-defined,arg-type]
        weight = TORCH.load(tiny, "fp32", "cpu")._base.body.layers[0].mlp.up_proj.weight  # type: ignore[attr-defined]
        if precision == "4-bit":
            packed, state = bitsandbytes.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
            wanted = bitsandbytes.functional.dequantize_4bit(packed, state)
        else:
            codes, scales, _ = bitsandbytes.functional.int8_vectorwise_quant(weight.to(torch.float16))
            wanted = codes * (scales.float() / 127.0)[:, None]
        torch.testing.assert_close(layer.dense(torch.float32), wanted, atol=1e-6, rtol=0)


def test_the_gradient_through_a_quantised_layer_is_that_of_its_dense_weight(tiny: Path) -> None:
    layer = TORCH.load(tiny, "4-bit", "cpu")._base.body.layers[0].mlp.up_proj  # type: ignore[attr-defined]
    x = torch.randn(3, 64, requires_grad=True)
    (got,) = torch.autograd.grad(layer(x).sum(), x)
    torch.testing.assert_close(got, layer.dense(torch.float32).sum(0).expand(3, -1))


def test_full_training_of_a_quantised_base_is_refused(tiny: Path) -> None:
    with pytest.raises(Unsupported, match="4-bit"):
        TORCH.load(tiny, "4-bit", "cpu").attach("a", plan_of(tiny, "full"), seed=0)


def test_full_training_in_bf16_keeps_fp32_masters(tiny: Path) -> None:
    ours = ready(tiny, "full", "bf16")
    losses = train(ours, 8, [batch_of()])
    assert losses[-1] < losses[0] - 0.2
    own = ours.tensors("a")["base_model.model.model.norm.weight"]
    assert (own.view(np.uint32) & 0xFFFF).any(), "the masters were rounded to bf16"


def test_swapping_adapters_is_exact(tiny: Path) -> None:
    bare = TORCH.load(tiny, "fp32", "cpu").logits([5, 6, 7, 8])
    ours = ready(tiny, "dora")
    train(ours, 2)
    ours.attach("运行 2026.11/b", plan_of(tiny, targets=("mlp",), layers="last:1"), seed=1)
    ours.prepare("运行 2026.11/b", TrainingSettings())
    train(ours, 2)
    ours.attach("c", plan_of(tiny, "full"), seed=2)
    ours.prepare("c", TrainingSettings())
    train(ours, 2)
    seen = {}
    for name in ("a", None, "运行 2026.11/b", "c"):
        ours.activate(name)
        seen[name] = ours.logits([5, 6, 7, 8])
    np.testing.assert_array_equal(seen[None], bare)
    for first in seen:
        for second in seen:
            ours.activate(first)
            began = time.perf_counter()
            ours.activate(second)
            sys.stdout.write(f"{first} -> {second}: {1e3 * (time.perf_counter() - began):.2f} ms\n")
            np.testing.assert_array_equal(ours.logits([5, 6, 7, 8]), seen[second])
            if first != second:
                assert np.abs(seen[first] - seen[second]).max() > 1e-4
    assert ours.adapters() == ["a", "运行 2026.11/b", "c"]
    ours.activate("c")
    ours.detach("a")
    np.testing.assert_array_equal(ours.logits([5, 6, 7, 8]), seen["c"])
    ours.detach("c")
    np.testing.assert_array_equal(ours.logits([5, 6, 7, 8]), bare)
    assert ours.adapters() == ["运行 2026.11/b"]


def test_training_goes_on_after_another_adapter_was_looked_at(tiny: Path) -> None:
    for method in ("lora", "full"):
        ours, undisturbed = ready(tiny, method), ready(tiny, method)
        train(ours, 2)
        train(undisturbed, 2)
        ours.attach("b", plan_of(tiny), seed=1)
        ours.score(batch_of())
        ours.activate(None)
        assert train(ours, 3) == train(undisturbed, 3)


@pytest.mark.parametrize("method", ["lora", "dora", "full"])
def test_tensors_survive_a_round_trip(tiny: Path, method: str) -> None:
    ours = ready(tiny, method)
    train(ours, 2)
    tensors = ours.tensors("a")
    again = TORCH.load(tiny, "fp32", "cpu")
    shapes = tuners()["full" if method == "full" else "low_rank"].shapes(plan_of(tiny, method))
    assert again.attach("a", plan_of(tiny, method), seed=0, tensors=tensors) == sum(
        int(np.prod(s)) for s in shapes.values()
    )
    for key, value in again.tensors("a").items():
        np.testing.assert_array_equal(value, tensors[key])
    np.testing.assert_array_equal(again.logits([5, 6, 7]), ours.logits([5, 6, 7]))


def test_the_start_is_the_shared_one(tiny: Path) -> None:
    from finetune_local.spec.initial import kaiming_uniform

    for precision in ("fp32", "bf16", "4-bit"):
        ours = TORCH.load(tiny, precision, "cpu")  # type: ignore[arg-type]
        ours.attach("a", plan_of(tiny, "dora"), seed=3)
        for name, value in ours.tensors("a").items():
            if "lora_A" in name:
                np.testing.assert_array_equal(value, kaiming_uniform(3, name, value.shape))
            if "lora_B" in name:
                assert not value.any()
        if precision == "fp32":
            name = "model.layers.0.mlp.up_proj"
            weight = ours._base.weights[name + ".weight"].detach().numpy()  # type: ignore[attr-defined]
            got = ours.tensors("a")[f"base_model.model.{name}.lora_magnitude_vector"]
            np.testing.assert_allclose(got, np.linalg.norm(weight, axis=1), rtol=1e-6)


@PLAIN_PEFT
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_plain_peft_opens_the_written_adapter(tiny: Path, tmp_path: Path, method: str) -> None:
    ours = ready(tiny, method)
    train(ours, 10)
    folder = tmp_path / "适配器 a"
    write_adapter(folder, plan_of(tiny, method), ours.tensors("a"), "tiny")
    base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, str(folder))
    with torch.no_grad():
        wanted = theirs(input_ids=torch.tensor([[5, 6, 7, 8]])).logits[0].numpy()
        with theirs.disable_adapter():
            bare = theirs(input_ids=torch.tensor([[5, 6, 7, 8]])).logits[0].numpy()
    np.testing.assert_allclose(ours.logits([5, 6, 7, 8]), wanted, atol=1e-4)
    assert np.abs(wanted - bare).max() > 1e-2


@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES])
def test_decoding_rows_together_equals_one_by_one(tmp_path: Path, family: str) -> None:
    ours = ready(tiny_model(tmp_path / family, family))
    train(ours, 2)
    prompts = [[5, 6, 7], [9, 10, 11, 12, 13, 14, 15], [20] * 70]
    together = _greedy(ours, prompts, 6)
    for prompt, (ids, logits) in zip(prompts, zip(*together, strict=True), strict=True):
        alone_ids, alone_logits = (value[0] for value in _greedy(ours, [prompt], 6))
        assert ids == alone_ids
        np.testing.assert_allclose(logits, alone_logits, atol=2e-4)
        whole = ours.logits(prompt + ids[:-1])[len(prompt) - 1 :]
        np.testing.assert_allclose(logits, whole, atol=2e-4)


def _greedy(ours: Session, prompts: list[list[int]], steps: int) -> tuple[list[list[int]], list[np.ndarray]]:
    decoder = ours.decoder()
    rows, ids, seen = prompts, [[] for _ in prompts], []
    for _ in range(steps):
        logits = decoder.feed(rows)
        seen.append(logits)
        rows = [[int(best)] for best in logits.argmax(1)]
        for own, row in zip(ids, rows, strict=True):
            own.extend(row)
    return ids, list(np.stack(seen, 1))


def test_wrong_things_are_refused_with_a_sentence(tiny: Path, tmp_path: Path) -> None:
    ours = ready(tiny)
    tensors = ours.tensors("a")
    first = min(tensors)
    with pytest.raises(AdapterError, match="is missing"):
        ours.attach("b", plan_of(tiny), 0, {k: v for k, v in tensors.items() if k != first})
    with pytest.raises(AdapterError, match="has shape"):
        ours.attach("b", plan_of(tiny), 0, {**tensors, first: tensors[first][:1]})
    with pytest.raises(AdapterError, match="is not expected"):
        ours.attach("b", plan_of(tiny), 0, {**tensors, "more": tensors[first]})
    other = plan_of(tiny_model(tmp_path / "deeper", layers=3))
    with pytest.raises(ModelError, match="no module"):
        ours.attach("b", other, 0)
    with pytest.raises(AdapterError, match="already in memory"):
        ours.attach("a", plan_of(tiny), 0)
    with pytest.raises(AdapterError, match="no adapter called"):
        ours.activate("b")
    assert ours.adapters() == ["a"]
    for gap in GAPS:
        if gap.setting == "training.optimizer" and gap.device == "cpu":
            with pytest.raises(Unsupported, match=str(gap.instead)):
                ours.prepare("a", TrainingSettings(optimizer=gap.value))  # type: ignore[arg-type]


def test_unknown_logits_are_refused_before_training(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = TORCH.load(tiny, "fp32", "cpu")
    ours.attach("a", plan_of(tiny), seed=0)
    monkeypatch.setattr(head_module.Head, "logits", lambda self, hidden: self.linear(hidden).float() * 1.01)
    with pytest.raises(Unsupported, match="llama"):
        ours.prepare("a", TrainingSettings())


def test_folders_that_cannot_be_loaded_are_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json here"):
        TORCH.load(tmp_path, "fp32", "cpu")
    broken = tiny_model(tmp_path / "broken")
    values = json.loads((broken / "config.json").read_text("utf-8"))
    (broken / "config.json").write_text(json.dumps({**values, "num_hidden_layers": 3}), "utf-8")
    with pytest.raises(ModelError, match="missing"):
        TORCH.load(broken, "fp32", "cpu")
    (broken / "config.json").write_text(json.dumps({**values, "model_type": "unheard-of"}), "utf-8")
    with pytest.raises(ModelError, match="cannot load"):
        TORCH.load(broken, "fp32", "cpu")
    (broken / "config.json").write_text(json.dumps(values), "utf-8")
    (broken / "model.safetensors").write_bytes(b"not a tensor file")
    with pytest.raises(ModelError, match="cannot load"):
        TORCH.load(broken, "fp32", "cpu")


def test_detaching_one_adapter_leaves_the_active_one(tiny: Path) -> None:
    ours = ready(tiny)
    train(ours, 2)
    tuned = ours.logits([5, 6, 7])
    ours.attach("b", plan_of(tiny), seed=1)
    ours.activate("a")
    ours.detach("b")
    np.testing.assert_array_equal(ours.logits([5, 6, 7]), tuned)


@pytest.mark.parametrize("first", [True, False])
def test_an_adapter_that_finds_no_room_leaves_nothing(tiny: Path, monkeypatch: pytest.MonkeyPatch, first: bool) -> None:
    ours = TORCH.load(tiny, "fp32", "cpu")
    if not first:
        ours.attach("a", plan_of(tiny), seed=0)
        ours.activate(None)
    before, made = ours.logits([5, 6, 7]), wrapped.tensor

    def full(array: Any, device: torch.device) -> torch.Tensor:
        if not next(rooms, False):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return made(array, device)

    rooms = iter([True] * 3)
    with monkeypatch.context() as patch, pytest.raises(OutOfMemory):
        patch.setattr(wrapped, "tensor", full)
        ours.attach("b", plan_of(tiny), seed=1)
    np.testing.assert_array_equal(ours.logits([5, 6, 7]), before)
    assert ours.adapters() == ([] if first else ["a"])
    ours.attach("b", plan_of(tiny), seed=1)
    ours.prepare("b", TrainingSettings())
    losses = [ours.step([batch_of()], SFT, RATE).loss for _ in range(8)]
    assert losses[-1] < losses[0]


def test_memory_is_measured(tiny: Path) -> None:
    use = TORCH.load(tiny, "fp32", "cpu").memory()
    assert 50e6 < use.current_bytes <= use.peak_bytes


def test_importing_the_backend_imports_no_framework() -> None:
    code = (
        "import sys; from finetune_local.backend import backends; b = backends()['torch']; b.missing(); b.versions();"
        "b.tuners(); b.gaps(); assert not {'torch', 'transformers', 'peft', 'bitsandbytes'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
