"""Bottleneck adapters on both backends against the formula written out over the base's own code, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conforming import SFT, batch, make_plan
from finetune_local.backend import Backend, Session
from finetune_local.spec.plan import AdapterPlan, BaseInfo, WeightInfo
from finetune_local.spec.run import TrainingSettings, parse_spec
from finetune_local.spec.tuners import tuner_of, tuners
from finetune_local.spec.tuners.bottleneck import BottleneckSettings
from finetune_local.system.errors import SpecError
from tiny import tiny_model

TEXT = [1, 40, 41, 42, 43, 44]
PLACINGS = {
    "adapter": ("series", ("self_attn", "mlp"), 1.0),
    "adapter-pfeiffer": ("series", ("mlp",), 1.0),
    "parallel-adapter": ("parallel", ("mlp",), 4.0),
}
ACTIVATIONS = ["relu", "gelu", "silu", "tanh"]


def plan_of(folder: Path, method: str = "adapter", **settings: Any) -> AdapterPlan:
    given = {"adapter_width": 8, **settings}
    return make_plan(parse_spec({"method": {"key": method, **given}}, "test"), folder)


def moved(plan: AdapterPlan) -> dict[str, np.ndarray]:
    """Tensors far from the start."""
    rng = np.random.default_rng(3)
    shapes = tuner_of(plan).shapes(plan)
    return {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def plain_logits(folder: Path, plan: AdapterPlan, tensors: dict[str, np.ndarray], method: str) -> np.ndarray:
    """transformers' model with the formula of the paper hung on its sublayers."""
    torch = pytest.importorskip("torch", reason="the reference is computed with torch")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    placing, sublayers, scale = PLACINGS[method]
    kind = plan.settings.adapter_activation  # type: ignore[attr-defined]
    bend = {
        "relu": lambda z: z.clamp(min=0),
        "gelu": lambda z: z * 0.5 * (1 + torch.erf(z / 2**0.5)),
        "silu": lambda z: z / (1 + torch.exp(-z)),
        "tanh": lambda z: 2 / (1 + torch.exp(-2 * z)) - 1,
    }[kind]

    def hook(name: str) -> Any:
        own = {key: torch.from_numpy(tensors[f"base_model.model.{name}.adapter_{key}"]) for key in
               ("down.weight", "down.bias", "up.weight", "up.bias")}  # fmt: skip

        def after(_: Any, args: Any, kwargs: Any, result: Any) -> Any:
            h = result[0] if isinstance(result, tuple) else result
            x = h if placing == "series" else args[0]
            h = h + scale * (bend(x @ own["down.weight"].T + own["down.bias"]) @ own["up.weight"].T + own["up.bias"])
            return (h, *result[1:]) if isinstance(result, tuple) else h

        return after

    for number in range(2):
        for part in sublayers:
            name = f"model.layers.{number}.{part}"
            model.get_submodule(name).register_forward_hook(hook(name), with_kwargs=True)
    with torch.no_grad():
        result: np.ndarray = model(input_ids=torch.tensor([TEXT])).logits[0].numpy()
    return result


@pytest.mark.parametrize("method", list(PLACINGS))
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_formula_is_the_papers(backend: Backend, tmp_path: Path, method: str, family: str) -> None:
    folder = tiny_model(tmp_path, family)
    plan = plan_of(folder, method)
    tensors = moved(plan)
    assert sorted(t.module.rpartition(".")[2] for t in plan.targets) == sorted(PLACINGS[method][1] * 2)
    session = backend.load(folder, "fp32")
    base = session.logits(TEXT)
    session.attach("a", plan, 1, tensors)
    found = session.logits(TEXT)
    np.testing.assert_allclose(found, plain_logits(folder, plan, tensors, method), atol=2e-4)
    assert np.abs(found - base).max() > 0.1


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_is_what_it_is_called(backend: Backend, tiny: Path, activation: str) -> None:
    plan = plan_of(tiny, adapter_activation=activation)
    tensors = moved(plan)
    session = backend.load(tiny, "fp32")
    session.attach("a", plan, 1, tensors)
    np.testing.assert_allclose(session.logits(TEXT), plain_logits(tiny, plan, tensors, "adapter"), atol=2e-4)


def test_attention_can_be_read_in_parallel(backend: Backend, tiny: Path) -> None:
    """The two placings differ, and parallel attention sees the attention's input (given by keyword in transformers)."""
    seen = []
    for placing in ("series", "parallel"):
        plan = plan_of(tiny, adapter_placing=placing, adapter_sublayers="attention", layers="last:1")
        session = backend.load(tiny, "fp32")
        session.attach("a", plan, 1, moved(plan))
        assert [t.module for t in plan.targets] == ["model.layers.1.self_attn"]
        seen.append(session.logits(TEXT))
    assert np.abs(seen[0] - seen[1]).max() > 1e-3


@pytest.mark.parametrize("precision", ["bf16", "4-bit"])
def test_it_trains_on_other_precisions(backend: Backend, tiny: Path, precision: Any) -> None:
    session = backend.load(tiny, precision)
    base = session.logits(TEXT)
    session.attach("a", plan_of(tiny), 1)
    np.testing.assert_array_equal(session.logits(TEXT), base)
    session.prepare("a", TrainingSettings())
    losses = [session.step([batch()], SFT, 1e-2).loss for _ in range(12)]
    assert losses[-1] < 0.6 * losses[0], losses


def test_checkpointing_changes_no_number(backend: Backend, tiny: Path) -> None:
    def curve(wanted: bool) -> list[float]:
        session: Session = backend.load(tiny, "fp32")
        session.attach("a", plan_of(tiny), 1)
        session.prepare("a", TrainingSettings(gradient_checkpointing=wanted))
        return [session.step([batch()], SFT, 1e-2).loss for _ in range(5)]

    np.testing.assert_allclose(curve(True), curve(False), rtol=1e-5)


def test_answers_written_token_by_token_are_the_whole_s(backend: Backend, tiny: Path) -> None:
    session = backend.load(tiny, "fp32")
    plan = plan_of(tiny)
    session.attach("a", plan, 1, moved(plan))
    decoder = session.decoder()
    whole = session.logits(TEXT)
    found = [decoder.feed([TEXT[:2]])[0], *(decoder.feed([[token]])[0] for token in TEXT[2:])]
    np.testing.assert_allclose(found, whole[1:], atol=1e-3)


def test_what_cannot_work_is_refused_with_a_sentence(tiny: Path) -> None:
    with pytest.raises(SpecError, match="--adapter-width is 65, but this model is 64 wide"):
        plan_of(tiny, adapter_width=65)
    with pytest.raises(SpecError, match="has blocks 0 to 1"):
        plan_of(tiny, layers="7")
    tuner = tuners()["bottleneck"]
    state_space = BaseInfo({"backbone.layers.0.mixer.in_proj.weight": WeightInfo((8, 8), "F32")})
    with pytest.raises(SpecError, match=r"attention and mlp.* The parts of its blocks are: mixer"):
        tuner.plan("adapter", BottleneckSettings(), state_space)
    only_attention = {
        "h.0.attn.qkv.weight": WeightInfo((24, 8), "F32"),
        "h.0.ln_1.weight": WeightInfo((8,), "F32"),
    }
    with pytest.raises(SpecError, match=r"each block's mlp.*The parts of its blocks are: attn, ln_1"):
        tuner.plan("adapter", BottleneckSettings(adapter_width=4), BaseInfo(only_attention))
    fitting = BottleneckSettings(adapter_width=4, adapter_sublayers="attention")
    targets = tuner.plan("adapter", fitting, BaseInfo(only_attention)).targets
    assert [(t.module, t.in_features, t.out_features) for t in targets] == [("h.0.attn", 8, 8)]


def test_an_adapter_of_another_width_of_model_is_refused(backend: Backend, tiny: Path) -> None:
    from dataclasses import replace

    from finetune_local.system.errors import ModelError

    plan = plan_of(tiny)
    plan = replace(plan, targets=tuple(replace(t, in_features=32, out_features=32) for t in plan.targets))
    with pytest.raises(ModelError, match="trained on a model of width 32, but this one has width 64"):
        backend.load(tiny, "fp32").attach("a", plan, 1, moved(plan))
