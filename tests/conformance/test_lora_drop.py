"""LoRA-drop on both backends: the sizes of updates, what is chosen by them, sharing, and runs through a stop."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conforming import ROWS, batch
from finetune_local.adapter_format import CONFIG, read_adapter, read_tensors, write_adapter
from finetune_local.backend import Backend, StepResult
from finetune_local.models.folder import ModelFolder
from finetune_local.spec.objectives import objectives
from finetune_local.spec.plan import AdapterPlan, BaseInfo, WeightInfo
from finetune_local.spec.run import TrainingSettings, parse_spec
from finetune_local.spec.tuners import PREFIX, Calibration, trainable_parameters, tuner_of
from finetune_local.spec.tuners.lora_drop import TUNER, stems
from finetune_local.system.errors import AdapterError, OutOfMemory, SpecError, TrainingDiverged
from finetune_local.system.paths import Home
from finetune_local.training import calibration
from finetune_local.training.events import Event, Note
from finetune_local.training.run_folder import runs
from finetune_local.training.setup import make_ready
from tasks import batch_of
from tiny import tiny_model
from training import assert_same, losses, ready_of, result, train

SFT = objectives()["sft"]
Q0, DOWN1 = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"


def settings_of(**given: Any) -> Any:
    return parse_spec({"method": {"key": "lora-drop", "rank": 4, **given}}, "test").method.settings


def make_plan(folder: Path, **given: Any) -> AdapterPlan:
    return TUNER.plan("lora-drop", settings_of(**given), ModelFolder.open(folder).info())


def grown(plan: AdapterPlan) -> dict[str, np.ndarray]:
    """Tensors of an adapter that does something."""
    rng = np.random.default_rng(3)
    return {n: rng.normal(0, 0.2, shape).astype(np.float32) for n, shape in tuner_of(plan).shapes(plan).items()}


def with_inputs(folder: Path, ids: list[int]) -> dict[str, np.ndarray]:
    """What goes into every linear layer of the blocks for one row, by plain transformers: module to (length, in)."""
    torch = pytest.importorskip("torch", reason="the plain computation needs torch")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    seen: dict[str, np.ndarray] = {}
    for name, module in model.named_modules():
        if name.endswith("_proj"):
            module.register_forward_pre_hook(lambda _, x, name=name: seen.update({name: x[0][0].numpy()}))
    with torch.no_grad():
        model(torch.tensor([ids]))
    return seen


@pytest.mark.parametrize("method", ["lora", "lora-drop"])
def test_update_sizes_equal_a_plain_computation(backend: Backend, tiny: Path, tmp_path: Path, method: str) -> None:
    """In the plain one the update is merged into the weights, and each row is read alone, without padding."""
    chosen = {"kept": (Q0,)} if method == "lora-drop" else {}
    spec = parse_spec({"method": {"key": method, "rank": 4, "alpha": 6, "dropout": 0.5, **chosen}}, "test")
    tuner = TUNER if method == "lora-drop" else tuner_of(make_plain(tiny))
    plan = tuner.plan(method, spec.method.settings, ModelFolder.open(tiny).info())
    tensors = grown(plan)
    plain, folded = tuner.fold(plan, tensors)
    merged = {
        name: tuner_of(plain).merge(name, weight, plain, folded)
        for name, weight in read_tensors(tiny / "model.safetensors").items()
    }
    from safetensors.numpy import save_file

    save_file(merged, tiny_model(tmp_path / "merged") / "model.safetensors", metadata={"format": "pt"})
    wanted: dict[str, float] = {}
    for row in ROWS:
        for module, x in with_inputs(tmp_path / "merged", row).items():
            a, b = (folded[f"{PREFIX}{module}.lora_{part}.weight"].astype(np.float64) for part in "AB")
            wanted[module] = wanted.get(module, 0.0) + float(np.square(6 / 4 * x @ a.T @ b.T).sum())
    session = backend.load(tiny, "fp32")
    session.attach("a", plan, 1, tensors)
    found = session.update_sizes(batch())
    assert found.keys() == wanted.keys()
    for module, size in wanted.items():
        assert found[module] == pytest.approx(size, rel=1e-4), module
    before = session.logits(ROWS[0])
    assert session.update_sizes(batch()) == found
    np.testing.assert_array_equal(session.logits(ROWS[0]), before)
    session.activate(None)
    with pytest.raises(AdapterError):
        session.update_sizes(batch())


def make_plain(folder: Path) -> AdapterPlan:
    return TUNER.fold(make_plan(folder), grown(make_plan(folder)))[0]


def test_the_most_important_are_kept_until_their_share_is_reached(tiny: Path) -> None:
    plan = make_plan(tiny, keep_importance=0.75)
    modules = [target.module for target in plan.targets]
    sizes = dict.fromkeys(modules, 0.1) | {Q0: 5.0, DOWN1: 2.6}
    settings, text = TUNER.calibrated(plan, sizes)
    assert settings.kept == (Q0, DOWN1)  # type: ignore[attr-defined]  # 7.6 of 8.8; 5.0 would be too little
    assert "2 of 14 layers" in text and "q_proj of block 0; down_proj of block 1" in text
    assert "86.4% of the importance" in text and "The other 12 share 7" in text
    everything, _ = TUNER.calibrated(make_plan(tiny, keep_importance=1.0), sizes)
    assert list(everything.kept) == modules  # type: ignore[attr-defined]
    for broken in (dict.fromkeys(modules, 0.0), sizes | {Q0: float("nan")}):
        with pytest.raises(TrainingDiverged, match="Lower --learning-rate"):
            TUNER.calibrated(plan, broken)


def test_a_shared_update_is_trained_by_all_that_share_it(backend: Backend, tiny: Path) -> None:
    """Its gradient is the sum of those of the same update held apart, so one step of both sums up."""
    plan = make_plan(tiny, kept=(Q0,), targets=("q_proj", "v_proj"))
    session = backend.load(tiny, "fp32")
    session.attach("a", plan, 1)
    session.prepare("a", TrainingSettings(max_gradient_norm=0))
    names = set(session.tensors("a"))
    assert names == {
        f"{PREFIX}{stem}.lora_{part}.weight" for stem in (Q0, "shared.q_proj", "shared.v_proj") for part in "AB"
    }
    for i in range(5):
        session.step([batch_of(seed=i)], SFT, 1e-2)
    tensors = session.tensors("a")
    plain, expanded = TUNER.fold(plan, tensors)
    first, second = (f"{PREFIX}model.layers.{i}.self_attn.v_proj.lora_B.weight" for i in (0, 1))
    np.testing.assert_array_equal(expanded[first], expanded[second])
    other = backend.load(tiny, "fp32")
    other.attach("a", plain, 1, expanded)
    np.testing.assert_allclose(other.logits(ROWS[0]), session.logits(ROWS[0]), atol=1e-5)
    assert trainable_parameters(plan) == 4 * (128 + 128 + 96) < trainable_parameters(plain) == 4 * 2 * (128 + 96)
    from conforming import gradients_of

    other.prepare("a", TrainingSettings())
    shared, apart = gradients_of(session, batch_of(seed=9)), gradients_of(other, batch_of(seed=9))
    name = PREFIX + "shared.v_proj.lora_B.weight"
    np.testing.assert_allclose(shared[name], apart[first] + apart[second], atol=1e-5)
    assert np.abs(apart[first]).max() > 1e-3 and np.abs(apart[second]).max() > 1e-3


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_published_file_is_a_plain_lora_of_peft(backend: Backend, tiny: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PEFT needs torch")
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    plan = make_plan(tiny, kept=(Q0, DOWN1), alpha=6.0)
    session = backend.load(tiny, "fp32")
    session.attach("a", plan, 1, grown(plan))
    write_adapter(tmp_path / "共享", *TUNER.fold(plan, session.tensors("a")), "tiny")
    base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, tmp_path / "共享").eval()
    with torch.no_grad():
        found = model(torch.tensor([ROWS[0]])).logits[0].numpy()
    np.testing.assert_allclose(found, session.logits(ROWS[0]), atol=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_checkpointed_blocks_train_what_they_share(backend: Backend, tiny: Path, checkpointing: bool) -> None:
    session = backend.load(tiny, "fp32")
    session.attach("a", make_plan(tiny, kept=(Q0,)), 1)
    session.prepare("a", TrainingSettings(gradient_checkpointing=checkpointing))
    curve = [session.step([batch()], SFT, 1e-2).loss for _ in range(4)]
    plain = backend.load(tiny, "fp32")
    plain.attach("a", make_plan(tiny, kept=(Q0,)), 1)
    plain.prepare("a", TrainingSettings(gradient_checkpointing=False))
    np.testing.assert_allclose(curve, [plain.step([batch()], SFT, 1e-2).loss for _ in range(4)], rtol=1e-5)


METHOD = {"key": "lora-drop", "rank": 4, "trial_steps": 4, "trial_share": 0.3, "keep_importance": 0.6}


def test_a_run_chooses_once_and_goes_on_after_a_stop_as_unbroken(make_run: Callable[..., runs.Run], home: Home) -> None:
    whole, broken = make_run("whole", METHOD), make_run("broken", METHOD)
    events = list(make_ready(whole, home))
    assert events[-1].session.adapters() == ["training"]  # type: ignore[union-attr]
    told = [event for event in events if isinstance(event, Note)]
    assert sum("keep their own LoRA" in note.text for note in told) == 1
    kept = whole.spec.method.settings.kept  # type: ignore[attr-defined]  # in run.json, before the first step
    assert 0 < len(kept) < 14
    again = [event for event in make_ready(whole, home) if isinstance(event, Note)]
    assert not any("keep their own LoRA" in note.text for note in again)
    curve = losses(train(whole, home))
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 6

    told_losses = losses(train(broken, home, stop))
    assert 3 < max(told_losses) < 12
    told_losses |= losses(train(broken, home))
    assert told_losses == curve
    assert broken.spec.method.settings.kept == kept  # type: ignore[attr-defined]
    assert_same(result(whole), result(broken))
    assert json.loads((whole.adapter / CONFIG).read_text("utf-8"))["peft_type"] == "LORA"
    plan, _ = read_adapter(whole.adapter)
    assert len(plan.targets) == 14
    ready = ready_of(whole, home)
    assert ready.session.adapters() == ["training"]
    assert trainable_parameters(ready.plan) < trainable_parameters(plan)


def test_a_trial_that_lacks_memory_computes_less_at_once(
    make_run: Callable[..., runs.Run], home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = ready_of(make_run("short", {"key": "lora-drop", "rank": 4, "kept": [Q0]}), home)
    spec, session, real = ready.spec, ready.session, ready.session.step_many
    plan = TUNER.plan("lora-drop", settings_of(), ready.model.info())
    expected = _last(calibration.update_sizes(session, plan, Calibration(0.3, 3), spec, ready.data.train))
    refused = []

    def short_of_memory(requests: Any) -> list[StepResult]:
        batches = [batch for request in requests for batch in request.batches]
        if max(b.ids.size for b in batches) > 40:
            refused.append(len(batches))
            raise OutOfMemory("too much at once")
        return real(requests)

    monkeypatch.setattr(session, "step_many", short_of_memory)
    found = _last(calibration.update_sizes(session, plan, Calibration(0.3, 3), spec, ready.data.train))
    assert refused and found.keys() == expected.keys() and len(found) == 14
    for module, size in expected.items():
        assert found[module] == pytest.approx(size, rel=1e-2)
    monkeypatch.setattr(session, "step_many", lambda *_: (_ for _ in ()).throw(OutOfMemory("nothing fits")))
    with pytest.raises(OutOfMemory, match="nothing fits"):
        _last(calibration.update_sizes(session, plan, Calibration(0.3, 3), spec, ready.data.train))
    assert session.adapters() == ["training"]


def test_a_trial_that_diverges_says_so(make_run: Callable[..., runs.Run], home: Home) -> None:
    ready = ready_of(make_run("wild", {"key": "lora-drop", "rank": 4, "kept": [Q0]}), home)
    training = ready.spec.training.model_copy(update={"learning_rate": 9e30})
    wild = ready.spec.model_copy(update={"training": training})
    plan = TUNER.plan("lora-drop", settings_of(), ready.model.info())
    with pytest.raises(TrainingDiverged, match="lower --learning-rate than 9e"):
        _last(calibration.update_sizes(ready.session, plan, Calibration(0.3, 6), wild, ready.data.train))


def _last(work: Generator[Event, None, dict[str, float]]) -> dict[str, float]:
    """What a generator returns."""
    while True:
        try:
            next(work)
        except StopIteration as done:
            result: dict[str, float] = done.value
            return result


def test_layers_given_by_the_user_need_no_trial(make_run: Callable[..., runs.Run], home: Home) -> None:
    run = make_run("given", {"key": "lora-drop", "kept": [Q0]})
    phases = [event for event in make_ready(run, home) if "calibrating: measuring" in str(event)]
    assert phases == []
    assert TUNER.calibration(ready_of(run, home).plan) is None


def test_the_trial_s_settings_reach_it(tiny: Path) -> None:
    assert TUNER.calibration(make_plan(tiny, trial_share=0.25, trial_steps=7)) == Calibration(0.25, 7)


def test_matrices_of_one_kind_and_two_shapes_share_apart() -> None:
    names = {0: (64, 32), 1: (64, 32), 2: (128, 32), 3: (128, 32)}
    weights = {f"model.layers.{i}.mlp.up_proj.weight": WeightInfo(shape, "F32") for i, shape in names.items()}
    plan = TUNER.plan("lora-drop", settings_of(kept=("model.layers.0.mlp.up_proj",)), BaseInfo(weights))
    assert list(stems(plan).values()) == [
        "model.layers.0.mlp.up_proj",
        "shared.up_proj.64x32",
        *["shared.up_proj.128x32"] * 2,
    ]
    assert trainable_parameters(plan) == 4 * (96 + 96 + 160)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kept": ("model.layers.0.self_attn.p_proj",)}, r"--keep-layer .*p_proj: no adapted layer .* Did you mean"),
        ({"kept": (Q0,), "targets": ("v_proj",)}, "no adapted layer has that name"),
        ({"rank": 33}, "a rank above 32 adds nothing"),
        ({"keep_importance": 0.0}, "greater than 0"),
    ],
)
def test_what_cannot_be_is_said(tiny: Path, given: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        make_plan(tiny, **given)
