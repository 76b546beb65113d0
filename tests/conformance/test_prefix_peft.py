"""Prefix tuning against PEFT's own: the same 20 steps from the same start, and files that go both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the torch backend is not installed")
import torch
from peft import PeftModel, PrefixTuningConfig, TaskType, get_peft_model
from transformers import AutoModelForCausalLM

from conforming import make_plan
from finetune_local.adapter_format import CONFIG, read_adapter, write_adapter
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.run import TrainingSettings, parse_spec
from finetune_local.spec.tuners import tuner_of
from finetune_local.spec.tuners.prefix import EMBEDDING, INNER, INNER_BIAS, OUTER, OUTER_BIAS, ROWS
from finetune_local.system.errors import AdapterError
from tasks import batch_of
from tiny import tiny_model
from torch_tools import PLAIN_PEFT, SFT, TORCH, plain_loss

N, WIDTH = 6, 16
pytestmark = PLAIN_PEFT


def plan_of(folder: Path, projection: bool) -> AdapterPlan:
    given = {"key": "prefix", "prefix_length": N, "prefix_width": WIDTH, "prefix_projection": projection}
    return make_plan(parse_spec({"method": given}, "test"), folder)


def plain(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def peft_model(folder: Path, plan: AdapterPlan, start: dict[str, np.ndarray], projection: bool) -> Any:
    """PEFT's model of the same size, begun with the same numbers."""
    config = PrefixTuningConfig(
        task_type=TaskType.CAUSAL_LM, num_virtual_tokens=N, prefix_projection=projection, encoder_hidden_size=WIDTH
    )
    model = get_peft_model(plain(folder), config)
    encoder = model.prompt_encoder["default"]
    if projection:
        layers = [target.module for target in plan.targets]
        given = {
            encoder.embedding.weight: start[EMBEDDING],
            encoder.transform[0].weight: start[INNER],
            encoder.transform[0].bias: start[INNER_BIAS],
            encoder.transform[2].weight: np.concatenate([start[layer + OUTER] for layer in layers]),
            encoder.transform[2].bias: np.concatenate([start[layer + OUTER_BIAS] for layer in layers]),
        }
    else:
        given = {encoder.embedding.weight: start[ROWS]}
    with torch.no_grad():
        for parameter, value in given.items():
            parameter.copy_(torch.from_numpy(value))
    return model


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
@pytest.mark.parametrize("projection", [False, True])
def test_twenty_steps_equal_peft_s(family: str, projection: bool, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / family, family)
    plan = plan_of(folder, projection)
    ours = TORCH.load(folder, "fp32", "cpu")
    ours.attach("a", plan, seed=7)
    ours.prepare("a", TrainingSettings(weight_decay=0.01))
    model = peft_model(folder, plan, ours.tensors("a"), projection)
    trained = [p for p in model.parameters() if p.requires_grad]
    rate = 3e-3 if projection else 3e-2
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.01)
    theirs = []
    for i in range(20):
        loss = plain_loss(model, batch_of(seed=i % 4))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        theirs.append(float(loss.detach()))
    losses = [ours.step([batch_of(seed=i % 4)], SFT, rate).loss for i in range(20)]
    assert losses[16] < losses[0] - 0.05, "nothing was learnt, so the comparison says nothing"
    np.testing.assert_allclose(losses, theirs, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma", "gemma2", "gemma3_text"])
def test_peft_opens_our_file_and_answers_the_same(family: str, tmp_path: Path) -> None:
    """Also beyond the window of Gemma 2 and 3."""
    folder = tiny_model(tmp_path / family, family)
    plan = plan_of(folder, True)
    session = TORCH.load(folder, "fp32", "cpu")
    session.attach("a", plan, seed=7)
    folded, rows = tuner_of(plan).fold(plan, session.tensors("a"))
    write_adapter(tmp_path / "前缀 prefix", folded, rows, str(folder))
    text = np.random.default_rng(3).integers(3, 380, 90).tolist()
    model = PeftModel.from_pretrained(plain(folder), tmp_path / "前缀 prefix").eval()
    with torch.no_grad():
        found = model(input_ids=torch.tensor([text])).logits[0].numpy()
        bare = model.get_base_model()(input_ids=torch.tensor([text])).logits[0].numpy()
    np.testing.assert_allclose(session.logits(text), found, atol=1e-4)
    assert np.abs(found - bare).max() > 0.1
    assert read_adapter(tmp_path / "前缀 prefix")[0].targets == folded.targets


@pytest.mark.parametrize("projection", [False, True])
def test_what_peft_saved_answers_the_same_here(projection: bool, tiny: Path, tmp_path: Path) -> None:
    plan = plan_of(tiny, projection)
    start = {name: np.array(value) for name, value in tuner_of(plan).initial(plan, 3, None).items()}  # type: ignore[arg-type]
    model = peft_model(tiny, plan, start, projection).eval()
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits[0].numpy()
    read, tensors = read_adapter(tmp_path)
    assert read.targets == plan.targets
    session = TORCH.load(tiny, "fp32", "cpu")
    session.attach("a", read, 0, tensors)
    np.testing.assert_allclose(session.logits([5, 6, 7, 8]), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_attention_heads": 3}, "of 3 heads, 32 numbers"),
        ({"num_layers": None}, "does not describe the prefix"),
        ({"num_transformer_submodules": 2}, "an encoder and a decoder"),
        ({"num_virtual_tokens": 7}, r"prompt_embeddings is \(6, 128\), but"),
    ],
)
def test_a_damaged_file_is_refused(change: dict[str, object], said: str, tiny: Path, tmp_path: Path) -> None:
    plan = plan_of(tiny, False)
    shape = tuner_of(plan).shapes(plan)[ROWS]
    write_adapter(tmp_path, plan, {ROWS: np.zeros(shape, np.float32)}, "tiny")
    config = json.loads((tmp_path / CONFIG).read_text("utf-8"))
    (tmp_path / CONFIG).write_text(json.dumps(config | change), "utf-8")
    with pytest.raises(AdapterError, match=said):
        read_adapter(tmp_path)
