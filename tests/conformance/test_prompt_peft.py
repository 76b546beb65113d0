"""Prompts beside PEFT's own: starts, losses of twenty steps, files read both ways, the encoder's arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("peft", reason="PEFT is not installed")
import torch
from peft import PeftModel, PromptEncoder, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

from conforming import make_plan
from finetune_local.adapter_format import read_adapter, read_config, write_adapter
from finetune_local.backend import Backend
from finetune_local.data.tokenizers.tokenizer import Tokenizer
from finetune_local.spec.numerics.prompt_encoder import PREFIX, NumpyFunctions, encode
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.run import TrainingSettings, parse_spec
from finetune_local.spec.tuners import Source, tuner_of
from finetune_local.spec.tuners.prompt import ROWS
from tasks import batch_of
from tiny import HIDDEN, tiny_model
from torch_tools import PLAIN_PEFT, RATE, SFT, plain_loss

pytestmark = PLAIN_PEFT

N = 6
TEXT = np.random.default_rng(5).integers(3, 380, 24).tolist()


def plan_of(folder: Path, method: str = "prompt", **settings: Any) -> AdapterPlan:
    return make_plan(parse_spec({"method": {"key": method, "prompt_length": N, **settings}}, "test"), folder)


def base_of(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def logits_of(model: Any) -> np.ndarray:
    """Of TEXT, without the prompt's own."""
    with torch.no_grad():
        found = model.eval()(input_ids=torch.tensor([TEXT])).logits[0, -len(TEXT) :]
    return np.asarray(found.numpy())


def encoder_of(kind: str, tensors: dict[str, np.ndarray], hidden: int) -> Any:
    config = PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=N, encoder_hidden_size=hidden, token_dim=HIDDEN, num_layers=2,
        num_attention_heads=4, num_transformer_submodules=1, encoder_reparameterization_type=kind.upper(),
    )  # fmt: skip
    encoder = PromptEncoder(config)
    encoder.load_state_dict(
        {name.removeprefix(PREFIX): torch.from_numpy(v) for name, v in tensors.items()}, strict=True
    )
    return encoder


@pytest.mark.parametrize("hidden", [HIDDEN, 24])
@pytest.mark.parametrize("kind", ["mlp", "lstm"])
def test_the_encoder_is_pefts(tiny: Path, kind: str, hidden: int) -> None:
    plan = plan_of(tiny, "p-tuning", prompt_encoder=kind, prompt_encoder_width=hidden)
    tensors = dict(tuner_of(plan).initial(plan, 1, Source(lambda _: np.zeros(0))))
    expected = encoder_of(kind, tensors, hidden)(torch.arange(N)[None])[0]
    np.testing.assert_allclose(encode(NumpyFunctions(), tensors), expected.detach().numpy(), atol=1e-6)
    fresh = encoder_of(kind, tensors, hidden)
    for module in fresh.modules():
        if hasattr(module, "reset_parameters"):
            torch.manual_seed(0)
            module.reset_parameters()
    for name, value in fresh.state_dict().items():  # begun as widely as torch begins it
        assert np.abs(tensors[PREFIX + name]).max() == pytest.approx(float(value.abs().max()), rel=0.35), name


@pytest.mark.parametrize("family", ["llama", "gemma", "gemma3_text"])
def test_a_text_begins_as_in_peft(backend: Backend, tmp_path: Path, family: str) -> None:
    folder, text = tiny_model(tmp_path / family, family), "Turn it into 代码."
    config = PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=30, prompt_tuning_init="TEXT", prompt_tuning_init_text=text,
        tokenizer_name_or_path=str(folder),
    )  # fmt: skip
    expected = get_peft_model(base_of(folder), config).prompt_encoder["default"].embedding.weight
    session = backend.load(folder, "fp32")
    plan = plan_of(folder, prompt_text=text, prompt_length=30)
    session.attach("a", plan, 1, ids=Tokenizer.load(folder).ids)
    np.testing.assert_allclose(session.tensors("a")[ROWS], expected.detach().numpy(), atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gemma"])
@pytest.mark.parametrize("kind", ["none", "mlp", "lstm"])
def test_twenty_steps_are_pefts(backend: Backend, tmp_path: Path, family: str, kind: str) -> None:
    folder = tiny_model(tmp_path / family, family)
    plan = plan_of(folder, "prompt" if kind == "none" else "p-tuning", prompt_encoder=kind)
    session = backend.load(folder, "fp32")
    session.attach("a", plan, 3)
    start = session.tensors("a")
    session.prepare("a", TrainingSettings())
    ours = [session.step([batch_of(seed=step % 4)], SFT, RATE).loss for step in range(20)]
    if kind == "none":
        model = get_peft_model(base_of(folder), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=N))
        model.prompt_encoder["default"].embedding.load_state_dict({"weight": torch.from_numpy(start[ROWS])})
    else:
        config = PromptEncoderConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=N,
            encoder_hidden_size=HIDDEN,
            encoder_reparameterization_type=kind.upper(),
        )
        model = get_peft_model(base_of(folder), config)
        model.prompt_encoder["default"].load_state_dict(encoder_of(kind, start, HIDDEN).state_dict())
    learnt = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=RATE, weight_decay=0.0)
    theirs = []
    for step in range(20):
        loss = plain_loss(_Shortened(model), batch_of(seed=step % 4))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learnt, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        theirs.append(float(loss.detach()))
    np.testing.assert_allclose(ours, theirs, atol=1e-5 if backend.name == "torch" or kind != "lstm" else 1e-4)
    np.testing.assert_allclose(session.logits(TEXT), logits_of(model), atol=2e-3)
    assert ours[-1] < ours[0]


class _Shortened:
    """A PEFT model whose logits are those of the text alone."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        found = self.model.train()(input_ids=input_ids, attention_mask=attention_mask)
        found.logits = found.logits[:, -input_ids.shape[1] :]
        return found


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma", "gemma3_text"])
@pytest.mark.parametrize("method", ["prompt", "p-tuning"])
def test_peft_opens_what_is_published(backend: Backend, tmp_path: Path, family: str, method: str) -> None:
    folder = tiny_model(tmp_path / "base", family)
    session, plan = backend.load(folder, "fp32"), plan_of(folder, method)
    session.attach("a", plan, 1)
    session.prepare("a", TrainingSettings())
    for step in range(3):
        session.step([batch_of(seed=step)], SFT, 1e-2)
    write_adapter(tmp_path / "made 适配", *tuner_of(plan).fold(plan, session.tensors("a")), "tiny")
    model = PeftModel.from_pretrained(base_of(folder), tmp_path / "made 适配")
    assert model.peft_config["default"].peft_type == ("PROMPT_TUNING" if method == "prompt" else "P_TUNING")
    np.testing.assert_allclose(logits_of(model), session.logits(TEXT), atol=5e-5)


@pytest.mark.parametrize("family", ["llama", "gemma"])
@pytest.mark.parametrize("kind", ["prompt", "mlp", "lstm"])
def test_what_peft_saves_opens_here(backend: Backend, tmp_path: Path, family: str, kind: str) -> None:
    folder, common = tiny_model(tmp_path / "base", family), {"task_type": "CAUSAL_LM", "num_virtual_tokens": N}
    torch.manual_seed(0)
    config: Any = PromptTuningConfig(**common)
    if kind != "prompt":
        config = PromptEncoderConfig(**common, encoder_hidden_size=24, encoder_reparameterization_type=kind.upper())
    model = get_peft_model(base_of(folder), config)
    model.save_pretrained(tmp_path / "theirs")
    plan, tensors = read_adapter(tmp_path / "theirs")
    session = backend.load(folder, "fp32")
    session.attach("a", plan, 1, tensors)
    assert (plan.method, session.virtual_tokens) == ("prompt" if kind == "prompt" else "p-tuning", N)
    np.testing.assert_allclose(session.logits(TEXT), logits_of(model), atol=5e-5)
    write_adapter(tmp_path / "again", plan, tensors, str(folder))
    ours, theirs = read_config(tmp_path / "again"), read_config(tmp_path / "theirs")
    assert ours.keys() <= theirs.keys(), "no field that PEFT does not know"
    same = {"peft_type", "task_type", "inference_mode", "num_virtual_tokens", "token_dim", "num_transformer_submodules"}
    assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}
