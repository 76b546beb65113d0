"""AdaLoRA against PEFT's own: loss curve, masks and file; and its budget through a stop, on both backends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conforming import make_case
from finetune_local.adapter_format import CONFIG, read_adapter, write_adapter
from finetune_local.backend import Backend
from finetune_local.models.folder import ModelFolder
from finetune_local.spec.objectives import objectives
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.run import TrainingSettings, parse_spec
from finetune_local.spec.tuners import PREFIX, trainable_parameters
from finetune_local.spec.tuners.adalora import TUNER, A, B, E, PrunedPlan, ranks_of
from finetune_local.system.errors import SpecError
from finetune_local.system.paths import Home
from finetune_local.training.run_folder import runs
from tasks import batch_of
from training import assert_same, losses, result, train

SFT = objectives()["sft"]
STEPS, RATE = 30, 2e-2
SETTINGS: dict[str, Any] = {
    "init_rank": 6, "target_rank": 2, "tinit": 0.1, "tfinal": 0.2, "delta_t": 3, "importance_beta1": 0.7
}  # fmt: skip
IDS = [1, 40, 41, 42, 43, 44, 45]


def make_plan(folder: Path, **settings: Any) -> AdapterPlan:
    spec = parse_spec({"method": {"key": "adalora", **SETTINGS, **settings}}, "test")
    return TUNER.plan("adalora", spec.method.settings, ModelFolder.open(folder).info())


def trained(backend: Backend, folder: Path, plan: AdapterPlan, steps: int = STEPS) -> tuple[Any, list[float]]:
    session = backend.load(folder, "fp32")
    session.attach("a", plan, 7)
    session.prepare("a", TrainingSettings(max_steps=STEPS))
    return session, [session.step([batch_of(seed=i % 4)], SFT, RATE).loss for i in range(steps)]


def peft_run(folder: Path, plan: AdapterPlan, start: dict[str, np.ndarray]) -> tuple[Any, list[float]]:
    """The same training as PEFT's documentation does it."""
    torch = pytest.importorskip("torch", reason="PEFT needs torch")
    from peft import AdaLoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    left_out = ("peft_type", "inference_mode", "rank_pattern", "total_step", "tinit", "tfinal")
    config = {key: value for key, value in TUNER.config(plan).items() if key not in left_out}
    schedule = {"total_step": STEPS, "tinit": int(0.1 * STEPS), "tfinal": int(0.2 * STEPS)}
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = get_peft_model(base, AdaLoraConfig(**config, **schedule))
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in start.items():
            own[name + ".default"].copy_(torch.from_numpy(value))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    told = []
    model.train()
    for step in range(STEPS):
        batch = batch_of(seed=step % 4)
        ids = torch.from_numpy(batch.ids.astype(np.int64))
        seen = (torch.arange(ids.shape[1])[None] < torch.from_numpy(batch.lengths)[:, None]).long()
        labels = torch.where(torch.from_numpy(batch.mask), ids, -100)
        outputs = model(input_ids=ids, attention_mask=seen, labels=labels)
        plain = torch.nn.functional.cross_entropy(
            outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
        )
        outputs.loss.backward()  # with PEFT's penalty in it
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        model.base_model.update_and_allocate(step + 1)
        optimizer.zero_grad()
        told.append(float(plain.detach()))
    return model.eval(), told


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("extra", [{}, {"alpha": 9.0, "targets": ("mlp",), "orth_weight": 1.0}])
def test_thirty_steps_with_pruning_are_peft_s(backend: Backend, tiny: Path, extra: dict[str, Any]) -> None:
    plan = make_plan(tiny, **extra)
    start = TUNER.initial(plan, 7, None)  # type: ignore[arg-type]
    session, curve = trained(backend, tiny, plan)
    model, wanted = peft_run(tiny, plan, dict(start))
    assert wanted[-1] < wanted[0] - 0.5, "nothing was learnt, so the comparison says nothing"
    np.testing.assert_allclose(curve, wanted, atol=1e-5 if backend.name == "torch" else 1e-3)
    ours = session.tensors("a")
    theirs = {n: p.detach().numpy() for n, p in model.named_parameters() if "lora_E" in n}
    ranks = {}
    for name, value in theirs.items():
        mine = ours[name.removesuffix(".default")]
        np.testing.assert_array_equal(mine != 0, value != 0, err_msg=name)
        np.testing.assert_allclose(mine, value, atol=1e-4 if backend.name == "torch" else 1e-2)
        ranks[name] = int((value != 0).sum())
    assert sum(ranks.values()) == 2 * len(ranks) and len(set(ranks.values())) > 1


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings(
    "ignore:The following rank_pattern keys:RuntimeWarning"
)  # PEFT says so of its own files too
@pytest.mark.filterwarnings(
    "ignore:Adapter 'default'.* invalid shape"
)  # PEFT takes a rank of 0 for an accident on saving
def test_the_file_opens_in_peft_and_peft_s_here(backend: Backend, tiny: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PEFT needs torch")
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    plan = make_plan(tiny)
    session, _ = trained(backend, tiny, plan)
    folded, tensors = TUNER.fold(plan, session.tensors("a"))
    assert isinstance(folded, PrunedPlan) and sum(folded.ranks) == 2 * len(plan.targets)
    assert min(folded.ranks) == 0, "a matrix without any rank should be tried as well"
    assert trainable_parameters(folded) == sum(t.size for t in tensors.values()) < trainable_parameters(plan)
    wanted = session.logits(IDS)
    write_adapter(tmp_path / "ours 我", folded, tensors, "tiny")
    write_adapter(tmp_path / "training", plan, session.tensors("a"), "tiny")
    for folder in ("ours 我", "training"):
        base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
        model = PeftModel.from_pretrained(base, tmp_path / folder).eval()
        with torch.no_grad():
            found = model(torch.tensor([IDS])).logits[0].numpy()
        np.testing.assert_allclose(found, wanted, atol=1e-4, err_msg=folder)
        model.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
        read_plan, read = read_adapter(tmp_path / "theirs")
        other = backend.load(tiny, "fp32")
        other.attach("b", read_plan, 0, read)
        np.testing.assert_allclose(other.logits(IDS), wanted, atol=1e-4, err_msg=folder)
        base_weights = {name: session.weight(name) for name in session_weights(plan)}
        for name, weight in base_weights.items():
            update = TUNER.merge(name, weight, read_plan, read) - weight
            module = model.get_submodule(PREFIX + name.removesuffix(".weight"))
            np.testing.assert_allclose(update, module.get_delta_weight("default").detach().numpy(), atol=1e-5)


def session_weights(plan: AdapterPlan) -> list[str]:
    return [target.module + ".weight" for target in plan.targets[:3]]


def test_pruned_tensors_go_on_as_they_came_back(tiny: Path, tmp_path: Path, backend: Backend) -> None:
    plan = make_plan(tiny)
    session, _ = trained(backend, tiny, plan)
    folded, tensors = TUNER.fold(plan, session.tensors("a"))
    write_adapter(tmp_path, folded, tensors, "tiny")
    read_plan, read = read_adapter(tmp_path)
    assert ranks_of(read_plan) == ranks_of_named(folded, read_plan)
    assert read_plan.settings.model_copy(update={"targets": (), "alpha": None}) == folded.settings.model_copy(
        update={"targets": (), "alpha": None}
    )
    assert_same(read, tensors)
    facts = TUNER.facts(read_plan)
    assert facts["mean rank"] == 2.0 and "0 (" in str(facts["ranks"])


def ranks_of_named(plan: AdapterPlan, like: AdapterPlan) -> tuple[int, ...]:
    by_name = dict(zip((t.module for t in plan.targets), ranks_of(plan), strict=True))
    return tuple(by_name[t.module] for t in like.targets)


@pytest.mark.parametrize("at", [4, 13, 26])  # before the first pruning, while ranks fall, and when they are final
def test_going_on_after_a_stop_is_exact(backend: Backend, tiny: Path, at: int) -> None:
    plan = make_plan(tiny)
    session, _ = trained(backend, tiny, plan, at)
    state = {name: np.array(value) for name, value in session.optimizer_state().items()}
    tensors = session.tensors("a")
    other = backend.load(tiny, "fp32")
    other.attach("a", plan, 99, tensors)
    other.prepare("a", TrainingSettings(max_steps=STEPS))
    other.restore_optimizer(state)
    curves = [[one.step([batch_of(seed=i % 4)], SFT, RATE).loss for i in range(at, STEPS)] for one in (session, other)]
    assert curves[0] == curves[1]
    assert_same(session.tensors("a"), other.tensors("a"))


def test_a_run_stopped_and_resumed_is_the_run_unbroken(make_run: Callable[..., runs.Run], home: Home) -> None:
    method = {"key": "adalora", "init_rank": 5, "target_rank": 2, "tinit": 0.2, "tfinal": 0.2}
    whole, broken = make_run("whole", method), make_run("broken", method)
    curve = losses(train(whole, home))
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 8  # while ranks fall

    told = losses(train(broken, home, stop))
    assert 4 < max(told) < 12
    told |= losses(train(broken, home))
    assert told == curve
    assert_same(result(whole), result(broken))
    plan = read_adapter(whole.adapter)[0]
    assert sum(ranks_of(plan)) == 2 * len(plan.targets)
    assert json.loads((whole.adapter / CONFIG).read_text("utf-8"))["peft_type"] == "ADALORA"


@pytest.mark.parametrize("precision", ["bf16", "4-bit"])
def test_it_trains_beside_other_precisions(backend: Backend, tiny: Path, precision: Any) -> None:
    case = make_case(backend, "adalora", tiny, precision=precision, max_steps=20)
    case.attach()
    case.session.prepare("a", case.spec.training)
    curve = case.train(20)
    assert curve[-1] < 0.7 * curve[0]
    assert 0 < sum(int((t != 0).sum()) for n, t in case.session.tensors("a").items() if n.endswith(E)) <= 4 * 14


def test_the_penalty_pulls_towards_orthogonal_and_is_not_told(backend: Backend, tiny: Path) -> None:
    def apart(weight: float) -> tuple[float, float]:
        session = backend.load(tiny, "fp32")
        session.attach("a", make_plan(tiny, orth_weight=weight), 7)
        session.prepare("a", TrainingSettings(max_steps=1))
        first = session.step([batch_of(seed=0)], SFT, RATE).loss
        for i in range(1, 30):
            session.step([batch_of(seed=i % 4)], SFT, RATE)
        a = [t for n, t in session.tensors("a").items() if n.endswith(A)]
        b = [t.T for n, t in session.tensors("a").items() if n.endswith(B)]
        return first, float(np.mean([np.linalg.norm(m @ m.T - np.eye(len(m))) for m in (*a, *b)]))

    (plain, free), (same, held) = apart(0.0), apart(0.5)
    assert plain == same
    assert held < 0.5 * free


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"init_rank": 33}, r"a rank above 32 adds nothing\. Lower --init-rank to 32"),
        ({"target_rank": 7}, "above --init-rank 6: ranks only fall"),
        ({"tinit": 0.5, "tfinal": 0.5}, "leave no steps in which ranks could be pruned"),
        ({"targets": ("no_proj",)}, "no linear layer with that name"),
    ],
)
def test_what_cannot_be_is_said(tiny: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        make_plan(tiny, **settings)
