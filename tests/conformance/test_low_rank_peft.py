"""The torch backend's LoRA kin against PEFT's own: optimizer groups, starts, patterns, embeddings, biases, files both ways;
and what its kernels keep for the way back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the torch backend is not installed")
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from transformers import AutoModelForCausalLM

from finetune_local.adapter_format import read_adapter, write_adapter
from finetune_local.backend import Session
from finetune_local.spec.low_rank.settings import LowRankSettings
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.tuners import tuner_of, tuners
from finetune_local_backends.torch import kernels
from finetune_local_backends.torch.tuners import low_rank
from tasks import batch_of, pieces, plan_of
from tiny import tiny_model
from torch_tools import PLAIN_PEFT, RATE, SFT, TORCH, plain_loss, ready, train

pytestmark = [
    PLAIN_PEFT,
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings:UserWarning"),  # PEFT, of merging an adapted tied matrix
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*rank_pattern.*:UserWarning"),  # PEFT, of conversions that nobody asks for here
]
TEXT = [1, 40, 41, 300, 2]


def peft_of(folder: Path, plan: AdapterPlan, start: Mapping[str, np.ndarray] | None, **changed: Any) -> Any:
    """PEFT's model from the plan's own config with some fields changed, and our tensors as its start."""
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = tuners()["low_rank"].config(plan) | changed
    model = get_peft_model(
        base, LoraConfig(**{k: v for k, v in config.items() if k not in ("peft_type", "inference_mode")})
    )
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in (start or {}).items():
            stem, _, tail = name.rpartition(".")
            candidates = (f"{stem}.default.{tail}", f"{name}.default.weight", f"{name}.default", name)
            own[next(key for key in candidates if key in own)].copy_(torch.from_numpy(value))
    return model


def twenty_steps(model: Any, optimizer: Any = None) -> list[float]:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = optimizer or torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    losses = []
    model.train()
    for i in range(20):
        loss = plain_loss(model, batch_of(seed=i % 4))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1, "nothing was learnt, so the comparison says nothing"
    return losses


def logits_of(model: Any) -> np.ndarray:
    model.eval()
    with torch.no_grad():
        found: np.ndarray = model(input_ids=torch.tensor([TEXT])).logits[0].numpy()
    return found


@pytest.mark.parametrize("extra", [{}, {"use_dora": True}, {"targets": ("all-linear", "embed_tokens")}])
def test_lora_plus_is_peft_s_optimizer(tiny: Path, extra: dict[str, Any]) -> None:
    settings = {"embedding_rate_ratio": 0.25, "b_rate_ratio": 4.0} if "targets" in extra else {}
    ours = ready(tiny, "lora-plus", **extra, **settings)
    model = peft_of(tiny, plan_of(tiny, "lora-plus", **extra), ours.tensors("a"))
    ratio = settings.get("b_rate_ratio", 16.0)
    optimizer = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=RATE, loraplus_lr_ratio=ratio, loraplus_lr_embedding=0.25 * RATE
    )
    np.testing.assert_allclose(train(ours, 20), twenty_steps(model, optimizer), atol=1e-5)


@pytest.mark.parametrize("use_dora", [False, True])
def test_lora_fa_is_peft_with_a_frozen(tiny: Path, use_dora: bool) -> None:
    ours = ready(tiny, "lora-fa", use_dora=use_dora)
    model = peft_of(tiny, plan_of(tiny, use_dora=use_dora), ours.tensors("a"))
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad_(False)
    np.testing.assert_allclose(train(ours, 20), twenty_steps(model), atol=1e-5)
    assert not any("lora_A" in name for name in ours.optimizer_state())


def kept_bytes(session: Session) -> int:
    """Bytes of the distinct tensors that one step keeps for the way back."""
    seen: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        alive.append(tensor)  # so that no address is used twice
        return tensor

    alive: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        session.step([batch_of(rows=8, length=64)], SFT, RATE)
    return sum(seen.values())


def test_lora_fa_keeps_less_for_the_way_back(tiny: Path) -> None:
    lora, frozen = (kept_bytes(ready(tiny, method, targets=("down_proj",))) for method in ("lora", "lora-fa"))
    inputs = 2 * 8 * 63 * 128 * 4  # of down_proj in two blocks, fp32; the last token predicts nothing
    assert lora - frozen >= 0.9 * inputs, (lora, frozen, inputs)


@pytest.mark.parametrize("start", ["pissa", "olora"])
@pytest.mark.parametrize("extra", [{}, {"scaling": "rslora", "alpha": 6.0}, {"use_dora": True, "targets": ("mlp",)}])
def test_starts_from_the_weights_are_peft_s(tiny: Path, tmp_path: Path, start: str, extra: dict[str, Any]) -> None:
    """PEFT changes the base's weights, here they stay: the same numbers."""
    plan = plan_of(tiny, start=start, **extra)
    folded, _ = tuner_of(plan).fold(plan, dict.fromkeys(tuner_of(plan).shapes(plan), np.zeros((2, 2), np.float32)))
    assert isinstance(plan.settings, LowRankSettings) and isinstance(folded.settings, LowRankSettings)
    changed = {"r": 4, "lora_alpha": plan.settings.effective_alpha, "init_lora_weights": start}
    ours, model = ready(tiny, start=start, **extra), peft_of(tiny, folded, None, **changed)
    bare = TORCH.load(tiny, "fp32", "cpu").logits(TEXT)
    np.testing.assert_allclose(ours.logits(TEXT), bare, atol=1e-5)
    np.testing.assert_allclose(logits_of(model), bare, atol=2e-5)
    np.testing.assert_allclose(train(ours, 20), twenty_steps(model), atol=1e-5)
    write_adapter(tmp_path, *tuner_of(plan).fold(plan, ours.tensors("a")), "tiny")
    base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    np.testing.assert_allclose(logits_of(PeftModel.from_pretrained(base, tmp_path)), ours.logits(TEXT), atol=2e-5)


CHANGES: dict[str, dict[str, Any]] = {
    "patterns": {"rank_pattern": ("q_proj=2", r"layers.1.mlp.\w+=6"), "alpha_pattern": ("up_proj=3",)},
    "patterns rslora alpha": {"rank_pattern": ("q_proj=2",), "scaling": "rslora", "alpha": 5.0},
    "embedding and head": {"targets": ("all-linear", "embed_tokens", "lm_head"), "rank_pattern": ("embed_tokens=8",)},
    "biases": {"train_bias": "all"},
    "biases of layers": {"train_bias": "lora-only", "targets": ("q_proj", "down_proj")},
    "biases and DoRA": {"train_bias": "lora-only", "targets": ("attention",), "use_dora": True},
}


WITH_BIASES = "qwen2"


@pytest.mark.parametrize(
    ("family", "name"),
    [(f, n) for f in ("llama", WITH_BIASES, "gemma2") for n in CHANGES if f == WITH_BIASES or "bias" not in n],
)
def test_twenty_steps_and_the_file_are_peft_s(tmp_path: Path, family: str, name: str) -> None:
    folder, extra = tiny_model(tmp_path / "模型", family), CHANGES[name]
    ours, plan = ready(folder, **extra), plan_of(folder, **extra)
    model = peft_of(folder, plan, ours.tensors("a"))
    np.testing.assert_allclose(train(ours, 20), twenty_steps(model), atol=2e-5 if family == "gemma2" else 1e-5)
    write_adapter(tmp_path / "ours", plan, ours.tensors("a"), "tiny")
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = ours.logits(TEXT)
    np.testing.assert_allclose(logits_of(PeftModel.from_pretrained(base, tmp_path / "ours")), expected, atol=2e-5)
    model.save_pretrained(tmp_path / "theirs")
    read, tensors = read_adapter(tmp_path / "theirs")
    ours.attach("theirs", read, 0, tensors)
    np.testing.assert_allclose(ours.logits(TEXT), logits_of(model), atol=2e-5)


def test_gaussian_is_spread_as_peft_s(tiny: Path) -> None:
    tensors = ready(tiny, start="gaussian", rank=8).tensors("a")
    a = np.concatenate([value.ravel() for name, value in tensors.items() if "lora_A" in name])
    assert a.std() == pytest.approx(1 / 8, rel=0.05) and abs(a.mean()) < 0.01
    assert not any(value.any() for name, value in tensors.items() if "lora_B" in name)


@pytest.mark.parametrize("precision", ["fp32", "8-bit", "4-bit"])
def test_dora_makes_its_norms_once_a_step_and_once_for_an_answer(
    tiny: Path, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, real, keep = [], kernels.row_norms, low_rank.LowRankLayer._row_norms

    def counted(*args: Any) -> torch.Tensor:
        calls.append(1)
        return real(*args)

    def forgetting(slot: low_rank.LowRankLayer, *args: Any) -> torch.Tensor:
        slot.refresh()
        return keep(slot, *args)

    def run() -> tuple[list[float], np.ndarray, int, int]:
        calls.clear()
        ours = ready(tiny, "dora", precision, {"gradient_checkpointing": True})
        losses = [ours.step(pieces(batch_of(seed=i), 1), SFT, RATE).loss for i in range(3)]
        trained = len(calls)
        decoder = ours.decoder()
        found = [decoder.feed([TEXT])] + [decoder.feed([[7]]) for _ in range(3)]
        return losses, np.concatenate(found), trained, len(calls) - trained

    monkeypatch.setattr(kernels, "row_norms", counted)
    layers = len(plan_of(tiny).targets)
    losses, answers, trained, told = run()
    assert losses[0] != losses[1]
    monkeypatch.setattr(low_rank.LowRankLayer, "_row_norms", forgetting)
    others = run()
    assert trained <= 3 * layers + layers and told <= layers  # the head's own check is a call too
    assert others[2] >= 3 * 4 * 2 * layers and others[3] == 4 * layers
    assert losses == others[0]
    np.testing.assert_array_equal(answers, others[1])


def test_dora_s_norms_follow_a_parameter_that_anything_changed(tiny: Path) -> None:
    ours = ready(tiny, "dora")
    train(ours, 2)
    ours.logits(TEXT)
    for name, parameter in ours._adapters["a"].parameters.items():  # type: ignore[attr-defined]
        if "lora_B" in name:
            with torch.no_grad():
                parameter.mul_(3.0)
    changed, tensors = ours.logits(TEXT), ours.tensors("a")
    ours.attach("b", plan_of(tiny, "dora"), 0, tensors)
    np.testing.assert_array_equal(changed, ours.logits(TEXT))
