"""IA³ and VeRA: against PEFT's own (answers, files, twenty steps of training), merging with biases, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from conforming import make_case, make_plan
from finetune_local.adapter_format import read_adapter, write_adapter
from finetune_local.backend import Backend, backends
from finetune_local.models.folder import ModelFolder
from finetune_local.spec.objectives import objectives
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.run import TrainingSettings, parse_spec
from finetune_local.spec.tuners import tuner_of
from finetune_local.spec.tuners.vera import A, B
from finetune_local.system.errors import AdapterError, ModelError, SpecError
from tasks import batch_of
from tiny import tiny_model

METHODS = ["ia3", "vera"]
RATE = 2e-2
SFT = objectives()["sft"]
TEXT = [1, 40, 41, 42, 43, 44]
PEFT_S_OWN = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def plan_of(folder: Path, method: str, **settings: Any) -> AdapterPlan:
    given = {"rank": 6, **settings} if method == "vera" else settings
    return make_plan(parse_spec({"method": {"key": method, **given}}, "test"), folder)


def moved(plan: AdapterPlan) -> dict[str, np.ndarray]:
    """Tensors away from the start, the frozen ones too."""
    rng = np.random.default_rng(3)
    middle = 1.0 if plan.tuner == "ia3" else 0.0
    shapes = tuner_of(plan).shapes(plan)
    return {name: rng.normal(middle, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}


def opened_by_peft(folder: Path, adapter: Path, trainable: bool = False) -> Any:
    torch = pytest.importorskip("torch", reason="PEFT stands on torch")
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return PeftModel.from_pretrained(base, adapter, is_trainable=trainable)


def logits_of(model: Any) -> np.ndarray:
    import torch

    with torch.no_grad():
        result: np.ndarray = model(input_ids=torch.tensor([TEXT])).logits[0].numpy()
    return result


@PEFT_S_OWN
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_peft_opens_it_and_answers_the_same(backend: Backend, tmp_path: Path, method: str, family: str) -> None:
    folder = tiny_model(tmp_path / "base", family)
    plan = plan_of(folder, method)
    session = backend.load(folder, "fp32")
    before = session.logits(TEXT)
    session.attach("a", plan, 1, moved(plan))
    write_adapter(tmp_path / "a", plan, session.tensors("a"), "tiny")
    theirs = opened_by_peft(folder, tmp_path / "a")
    assert np.abs(session.logits(TEXT) - before).max() > 0.1
    np.testing.assert_allclose(session.logits(TEXT), logits_of(theirs.eval()), atol=2e-4)


@PEFT_S_OWN
@pytest.mark.parametrize("method", METHODS)
def test_what_peft_saves_is_read(backend: Backend, tmp_path: Path, method: str) -> None:
    """Made by PEFT with short names of modules, saved by PEFT, and used here."""
    torch = pytest.importorskip("torch", reason="PEFT stands on torch")
    from peft import IA3Config, VeraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tiny_model(tmp_path / "base", "qwen2")
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config: Any = (
        IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])
        if method == "ia3"
        else VeraConfig(task_type="CAUSAL_LM", r=6, target_modules=["q_proj", "down_proj"])
    )  # fmt: skip
    theirs = get_peft_model(base, config)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "ia3_l" in name or "vera_lambda" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    theirs.save_pretrained(tmp_path / "theirs")
    plan, tensors = read_adapter(tmp_path / "theirs")
    assert plan.method == method
    session = backend.load(folder, "fp32")
    session.attach("a", plan, 1, tensors)
    np.testing.assert_allclose(session.logits(TEXT), logits_of(theirs.eval()), atol=2e-4)
    model = ModelFolder.open(folder)
    tuner = tuner_of(plan)
    assert all(tuner.fits(t, model.weights()[t.module + ".weight"].shape) for t in plan.targets)
    assert not any(tuner.fits(t, (63, 63)) for t in plan.targets)


@PEFT_S_OWN
@pytest.mark.parametrize("method", METHODS)
def test_twenty_steps_equal_a_plain_peft_loop(tiny: Path, tmp_path: Path, method: str) -> None:
    torch = pytest.importorskip("torch", reason="PEFT stands on torch")
    from torch_tools import plain_loss

    plan = plan_of(tiny, method)
    ours = backends()["torch"].load(tiny, "fp32", "cpu")
    ours.attach("a", plan, 7)
    ours.prepare("a", TrainingSettings(weight_decay=0.01))
    write_adapter(tmp_path, plan, ours.tensors("a"), "tiny")
    model = opened_by_peft(tiny, tmp_path, trainable=True)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == sum(v.size for n, v in ours.tensors("a").items() if n not in (A, B))
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.01)
    losses, theirs = [], []
    for i in range(20):
        loss = plain_loss(model, batch_of(seed=i % 4))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        theirs.append(float(loss.detach()))
        losses.append(ours.step([batch_of(seed=i % 4)], SFT, RATE).loss)
    assert losses[-1] < losses[0] - 0.1, "nothing was learnt, so the comparison says nothing"
    np.testing.assert_allclose(losses, theirs, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_merging_takes_the_biases_with_it(backend: Backend, tmp_path: Path, method: str) -> None:
    """Qwen 2 has biases on q, k and v; IA³ scales what they are part of."""
    folder = tiny_model(tmp_path / "base", "qwen2")
    plan = plan_of(folder, method)
    session = backend.load(folder, "fp32")
    tensors = moved(plan)
    session.attach("a", plan, 1, tensors)
    merged = {
        name: tuner_of(plan).merge(name, weight, plan, tensors)
        for name, weight in load_file(folder / "model.safetensors").items()
    }
    other = tiny_model(tmp_path / "merged", "qwen2")
    save_file(merged, other / "model.safetensors", metadata={"format": "pt"})
    np.testing.assert_allclose(backend.load(other, "fp32").logits(TEXT), session.logits(TEXT), atol=2e-4)


@pytest.mark.parametrize("precision", ["bf16", "4-bit"])
@pytest.mark.parametrize("method", METHODS)
def test_they_train_on_other_precisions(backend: Backend, tiny: Path, method: str, precision: Any) -> None:
    session = backend.load(tiny, precision)
    base = session.logits(TEXT)
    session.attach("a", plan_of(tiny, method), 1)
    np.testing.assert_array_equal(session.logits(TEXT), base)
    session.prepare("a", TrainingSettings())
    losses = [session.step([batch_of(seed=1)], SFT, 5e-2).loss for _ in range(20)]
    assert losses[-1] < 0.85 * losses[0], losses


def test_ia3_scales_what_it_is_told(tiny: Path) -> None:
    plan = plan_of(tiny, "ia3")
    sides = {t.module.rpartition(".")[2]: (t.in_features, t.out_features) for t in plan.targets}
    assert sides == {"k_proj": (0, 32), "v_proj": (0, 32), "down_proj": (128, 0)}
    other = plan_of(tiny, "ia3", targets=("q_proj", "up_proj"), ia3_inputs=("q_proj",), layers="last:1")
    assert {t.module: (t.in_features, t.out_features) for t in other.targets} == {
        "model.layers.1.self_attn.q_proj": (64, 0),
        "model.layers.1.mlp.up_proj": (0, 128),
    }
    with pytest.raises(SpecError, match=r"--target k_prok: this model has no linear layer .* Did you mean 'k_proj'"):
        plan_of(tiny, "ia3", targets=("k_prok",))


def test_vera_s_matrices_are_shared_frozen_and_the_seed_s(backend: Backend, tiny: Path) -> None:
    made = []
    for seed in (1, 1, 2):
        session = backend.load(tiny, "fp32")
        session.attach("a", plan_of(tiny, "vera"), seed)
        made.append(session.tensors("a"))
    assert made[0][A].shape == (6, 128) and made[0][B].shape == (128, 6)
    assert len([name for name in made[0] if name in (A, B)]) == 2
    np.testing.assert_array_equal(made[0][A], made[1][A])
    assert np.abs(made[0][A] - made[2][A]).max() > 0.1
    assert made[0][A].std() == pytest.approx(np.sqrt(2 / 128), rel=0.1)  # Kaiming: variance 2/in
    assert made[0][B].std() == pytest.approx(np.sqrt(2 / 6), rel=0.1)
    assert {float(v) for n in made[0] if n.endswith("lambda_d") for v in made[0][n]} == {float(np.float32(0.1))}


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_of_another_base_is_refused(backend: Backend, tiny: Path, method: str) -> None:
    from dataclasses import replace

    plan = plan_of(tiny, method, targets=("down_proj",))
    smaller = tuple(replace(t, in_features=t.in_features and 64) for t in plan.targets)
    plan = replace(plan, targets=smaller)
    with pytest.raises(ModelError, match=r"model\.layers\.0\.mlp\.down_proj"):
        backend.load(tiny, "fp32").attach("a", plan, 1, moved(plan))


@pytest.mark.parametrize(("name", "said"), [("down_prj", "down_proj"), ("up_proj", "--target too")])
def test_inputs_that_are_not_among_the_layers_are_refused(tiny: Path, name: str, said: str) -> None:
    with pytest.raises(SpecError, match=f"--ia3-input {name}: no trained layer.*{said}"):
        plan_of(tiny, "ia3", ia3_inputs=(name,))
    assert plan_of(tiny, "ia3", ia3_inputs=("up_proj",), targets=("up_proj",)).targets[0].in_features


def test_files_that_cannot_be_used_say_why(tiny: Path, tmp_path: Path) -> None:
    for method, lose, change, said in (
        ("vera", (A, B), {}, "saved without its random matrices.*save_projection=True"),
        ("vera", (), {"bias": "all"}, "'modules_to_save' or 'bias'"),
        ("ia3", (), {"modules_to_save": ["lm_head"]}, "'modules_to_save'"),
    ):
        plan = plan_of(tiny, method)
        folder = tmp_path / f"{method}{len(list(tmp_path.iterdir()))}"
        write_adapter(folder, plan, {n: v for n, v in moved(plan).items() if n not in lose}, "tiny")
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | change), "utf-8")
        with pytest.raises(AdapterError, match=said):
            read_adapter(folder)


def test_vera_s_matrices_are_kept_once_for_the_way_back(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the torch backend is not installed")
    case = make_case(backends()["torch"], "vera", tiny_model(tmp_path / "tiny", dtype="bfloat16"), "bf16")
    case.attach()
    case.session.prepare("a", case.spec.training)
    rank = case.plan.settings.rank
    kept: set[int] = set()

    def keep(saved: Any) -> Any:
        if saved.dtype == torch.bfloat16 and rank in (saved.shape[0], saved.shape[-1]) and saved.dim() == 2:
            kept.add(saved.untyped_storage().data_ptr())
        return saved

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        case.train(1)
    assert len(kept) == 2
