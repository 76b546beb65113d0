"""Training some of a base's own weights: which ones, what is not computed for the others, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from conforming import SFT, batch, make_plan
from finetune_local.adapter_format import read_adapter, write_adapter
from finetune_local.backend import Backend, Session
from finetune_local.models.folder import ModelFolder
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.run import TrainingSettings, parse_spec
from finetune_local.spec.tuners import PREFIX, tuner_of
from finetune_local.spec.tuners.full import FullSettings
from finetune_local.system.errors import SpecError, Unsupported
from finetune_local.training.check import plan_for
from tasks import batch_of
from tiny import tiny_model

TEXT = [1, 40, 41, 42, 43, 44]
RATE = 3e-3


def plan_of(folder: Path, method: str = "full", **settings: Any) -> AdapterPlan:
    return make_plan(parse_spec({"method": {"key": method, **settings}}, "test"), folder)


def names_of(plan: AdapterPlan) -> set[str]:
    return {target.module for target in plan.targets}


def ready(backend: Backend, folder: Path, plan: AdapterPlan, precision: Any = "fp32", **training: Any) -> Session:
    session = backend.load(folder, precision)
    session.attach("a", plan, 1)
    session.prepare("a", TrainingSettings(**training))
    return session


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2"])
def test_the_kinds_of_weights_by_name(tmp_path: Path, family: str) -> None:
    folder = tiny_model(tmp_path, family)
    every = set(ModelFolder.open(folder).weights())
    per_block = {"llama": 2, "qwen2": 2, "qwen3": 4, "gemma2": 4}[family]
    norms = names_of(plan_of(folder, "norms"))
    assert len(norms) == 2 * per_block + 1 and all("norm" in name for name in norms)
    tables = names_of(plan_of(folder, train_weights="embeddings"))
    assert tables == {"model.embed_tokens.weight"} | ({"lm_head.weight"} if family == "qwen3" else set())
    blocks = names_of(plan_of(folder, train_weights="layers"))
    assert blocks == every - tables - {"model.norm.weight"}
    last = names_of(plan_of(folder, "last-layers", layers="last:1"))
    assert last == {name for name in every if name.startswith("model.layers.1.")}
    assert names_of(plan_of(folder, layers="last:1")) == last
    assert names_of(plan_of(folder)) == every
    assert names_of(plan_of(folder, "norms", layers="0")) == {n for n in norms if ".layers.0." in n}
    if family == "qwen2":
        biases = {f"model.layers.{i}.self_attn.{n}_proj.bias" for i in range(2) for n in "qkv"}
        assert names_of(plan_of(folder, train_weights="biases")) == biases
    else:
        with pytest.raises(
            SpecError, match=r"trains the biases of a model, but this one has none\. It has: norms, embed"
        ):
            plan_of(folder, train_weights="biases")


@pytest.mark.parametrize(
    "settings", [{"layers": "last:1"}, {"train_weights": "norms"}, {"train_weights": "embeddings"}]
)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_ten_steps_equal_a_plain_loop(backend: Backend, tmp_path: Path, family: str, settings: dict[str, Any]) -> None:
    """With a head that is the embedding, and with one of its own."""
    torch = pytest.importorskip("torch", reason="the reference is computed with torch")
    from transformers import AutoModelForCausalLM

    from torch_tools import plain_loss

    folder = tiny_model(tmp_path, family)
    plan = plan_of(folder, **settings)
    ours = ready(backend, folder, plan)
    base = ours.weight("model.layers.0.mlp.up_proj.weight")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    trained = [p for name, p in model.named_parameters() if name in names_of(plan)]
    assert len(trained) == len(plan.targets)
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    theirs, losses = [], []
    for i in range(10):
        loss = plain_loss(model, batch_of(seed=i % 4))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        model.zero_grad()
        theirs.append(float(loss.detach()))
        losses.append(ours.step([batch_of(seed=i % 4)], SFT, RATE).loss)
    assert losses[8] < losses[0] - 0.02  # the same batch
    np.testing.assert_allclose(losses, theirs, atol=2e-5 if backend.name == "torch" else 1e-3)
    assert ours.tensors("a").keys() == {PREFIX + name for name in names_of(plan)}
    ours.activate(None)
    np.testing.assert_array_equal(ours.weight("model.layers.0.mlp.up_proj.weight"), base)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_nothing_is_computed_backwards_below_the_lowest_trained_block(
    backend: Backend, tmp_path: Path, checkpointing: bool
) -> None:
    folder = tiny_model(tmp_path, layers=3)
    for layers, allowed in (("last:2", True), ("0-1", False)):
        session = ready(
            backend, folder, plan_of(folder, "last-layers", layers=layers), gradient_checkpointing=checkpointing
        )
        _refuse_gradients_in_block_0(backend.name, session)
        if allowed:
            assert np.isfinite(session.step([batch()], SFT, 1e-3).gradient_norm)
        else:
            with pytest.raises(Exception, match="went through block 0"):
                session.step([batch()], SFT, 1e-3)


def _refuse_gradients_in_block_0(name: str, session: Any) -> None:
    """Make the block's MLP compute the same and fail where a gradient comes back through it."""
    if name == "torch":
        import torch

        class Once(torch.autograd.Function):
            @staticmethod
            def forward(_: Any, x: torch.Tensor) -> torch.Tensor:
                return x.clone()

            @staticmethod
            def backward(*_: Any) -> Any:
                raise RuntimeError("a gradient went through block 0")

        down = session._base.body.layers[0].mlp.down_proj
        down.register_forward_hook(lambda _module, _given, result: Once.apply(result))
        return
    import mlx.core as mx

    mlp = session.model.module.model.layers[0].mlp
    usual: Any = type(mlp)

    @mx.custom_function
    def same(x: mx.array) -> mx.array:
        return x + 0

    @same.vjp
    def same_vjp(*_: Any) -> mx.array:
        raise RuntimeError("a gradient went through block 0")

    mlp.__class__ = type("Watched", (usual,), {"__call__": lambda self, x: same(usual.__call__(self, x))})


@pytest.mark.parametrize("stored", [False, True])
def test_a_tied_head_stays_the_embedding(backend: Backend, tmp_path: Path, stored: bool) -> None:
    folder = tiny_model(tmp_path / "base")
    weights = load_file(folder / "model.safetensors")
    if stored:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    plan = plan_of(folder, train_weights="embeddings")
    session = ready(backend, folder, plan)
    losses = [session.step([batch()], SFT, 1e-2).loss for _ in range(10)]
    assert losses[-1] < 0.6 * losses[0]
    tensors = session.tensors("a")
    assert len(tensors) == 1 + stored
    if stored:
        np.testing.assert_array_equal(*tensors.values())
    write_adapter(tmp_path / "a", plan, tensors, "tiny")
    plan, tensors = read_adapter(tmp_path / "a")
    merged = {name: tuner_of(plan).merge(name, weight, plan, tensors) for name, weight in weights.items()}
    other = tiny_model(tmp_path / "merged")
    save_file(merged, other / "model.safetensors", metadata={"format": "pt"})
    np.testing.assert_allclose(backend.load(other, "fp32").logits(TEXT), session.logits(TEXT), atol=1e-4)


@pytest.mark.parametrize("settings", [{"train_weights": "norms"}, {"train_weights": "embeddings"}])
def test_what_is_not_quantised_is_trained_on_a_4_bit_base(
    backend: Backend, tiny: Path, settings: dict[str, Any]
) -> None:
    plan = plan_of(tiny, **settings)
    assert tuner_of(plan).refusal(plan.settings, "4-bit") is None
    session = ready(backend, tiny, plan, "4-bit")
    losses = [session.step([batch()], SFT, 3e-2).loss for _ in range(10)]
    assert losses[-1] < 0.7 * losses[0], losses


def test_what_is_quantised_is_refused_before_and_after_loading(backend: Backend, tiny: Path) -> None:
    spec = parse_spec({"method": "last-layers", "model": {"precision": "4-bit"}}, "test")
    with pytest.raises(SpecError, match=r"'last-layers' does not work here: .*cannot be stored in 4-bit"):
        plan_for(spec, ModelFolder.open(tiny))
    with pytest.raises(Unsupported, match=r"model\.layers\.\d\.\S+ is (quantised|stored in 4-bit)"):
        backend.load(tiny, "4-bit").attach("a", plan_of(tiny, "last-layers"), 1)


def test_choices_that_leave_nothing_are_refused(tiny: Path) -> None:
    with pytest.raises(SpecError, match="--layers last:1: the embeddings of this model are not in these blocks"):
        plan_of(tiny, train_weights="embeddings", layers="last:1")
    with pytest.raises(SpecError, match="this model has 2 blocks"):
        plan_of(tiny, "last-layers", layers="last:3")


def test_an_adapter_of_all_weights_from_before_there_were_settings_is_read() -> None:
    from finetune_local.spec.peft_config import peft_config
    from finetune_local.spec.tuners import from_own_config

    old = {"family": "full", "method": "full", "settings": {}, "targets": [["model.norm.weight", 0, 64]]}
    plan = from_own_config(peft_config(old, "test"))
    assert plan.settings == FullSettings() and names_of(plan) == {"model.norm.weight"}


def test_bf16_masters_of_norms_move_by_less_than_bf16_holds(backend: Backend, tiny: Path) -> None:
    """A factor of one changes in bf16 only by 0.4 %: the fp32 masters must add up what is smaller."""
    session = ready(backend, tiny, plan_of(tiny, "norms"), "bf16")
    before = session.tensors("a")
    for _ in range(3):
        session.step([batch()], SFT, 1e-4)
    change = max(float(np.abs(session.tensors("a")[name] - before[name]).max()) for name in before)
    assert 1e-4 < change < 4e-4
