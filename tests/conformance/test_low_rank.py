"""LoRA's kin on every backend: rates, starts, patterns, embeddings, the head, biases, and mixes of them; what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from conforming import SFT, batch, log_softmax
from finetune_local.adapter_format import read_adapter, read_config, write_adapter
from finetune_local.adapters.identity import check_shapes
from finetune_local.backend import Backend, Session, backends
from finetune_local.export.weights import MergedWeights
from finetune_local.models.folder import ModelFolder
from finetune_local.spec.low_rank.peft import A0, B0, A, B
from finetune_local.spec.low_rank.settings import LowRankSettings
from finetune_local.spec.peft_config import peft_config
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.run import Precision, TrainingSettings
from finetune_local.spec.tuners import tuner_of, tuners
from finetune_local.system.errors import SpecError
from tasks import batch_of, plan_of
from tiny import tiny_model

TEXT = [1, 40, 41, 42, 300, 301, 2]
STEPS = 20
MIXES: dict[str, dict[str, Any]] = {
    "dora lora+": {"use_dora": True, "b_rate_ratio": 4.0},
    "dora lora-fa": {"use_dora": True, "freeze_a": True},
    "dora pissa rslora": {"use_dora": True, "start": "pissa", "scaling": "rslora"},
    "lora-fa lora+": {"freeze_a": True, "b_rate_ratio": 4.0},
    "olora patterns": {"start": "olora", "rank_pattern": ("q_proj=2", r"layers.0.mlp.\w+=6"), "alpha_pattern": ("up_proj=3",)},
    "gaussian rslora patterns": {"start": "gaussian", "scaling": "rslora", "rank_pattern": ("v_proj=8",)},
    "dora dropout": {"use_dora": True, "dropout": 0.1},
    "embedding": {"targets": ("all-linear", "embed_tokens"), "embedding_rate_ratio": 0.5},
    "head": {"targets": ("q_proj", "lm_head"), "rank_pattern": ("lm_head=8",)},
    "embedding and head": {"targets": ("embed_tokens", "lm_head"), "dropout": 0.05},
    "biases": {"train_bias": "all", "use_dora": True},
    "biases of layers": {"train_bias": "lora-only", "targets": ("q_proj",), "start": "pissa"},
}  # fmt: skip
BIASED = tuple(name for name, mix in MIXES.items() if "train_bias" in mix)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with biases whose head is its embedding."""
    return tiny_model(tmp_path_factory.mktemp("tied 模型") / "qwen", "qwen2", tied=True)


def started(
    backend: Backend, folder: Path, precision: Precision = "fp32", steps: int = 0, **settings: Any
) -> tuple[Session, AdapterPlan, list[float]]:
    """A session with the adapter "a", trained for some steps."""
    plan = plan_of(folder, **settings)
    session = backend.load(folder, precision)
    session.attach("a", plan, 1, stored=ModelFolder.open(folder).read)
    session.prepare("a", TrainingSettings())
    losses = []
    for step in range(steps):
        session.seed(step)
        losses.append(session.step([batch()], SFT, 5e-3).loss)
    return session, plan, losses


@pytest.mark.parametrize("name", MIXES)
def test_a_mix_starts_neutral_learns_and_comes_back(
    backend: Backend, tiny: Path, tied: Path, tmp_path: Path, name: str
) -> None:
    folder, mix = tied if name in BIASED else tiny, MIXES[name]
    session, plan, _ = started(backend, folder, **mix)
    after = session.logits(TEXT)
    session.activate(None)
    np.testing.assert_allclose(session.logits(TEXT), after, atol=2e-5)
    session, plan, losses = started(backend, folder, steps=12, **mix)
    assert losses[-1] < 0.8 * losses[0], losses
    expected = session.logits(TEXT)
    np.testing.assert_allclose(scores_by_logits(session), session.score(batch()), atol=2e-5)
    folded, tensors = tuner_of(plan).fold(plan, session.tensors("a"))
    write_adapter(tmp_path / "适配器", folded, tensors, "tiny")
    assert read_config(tmp_path / "适配器")["peft_type"] == "LORA"
    read, values = read_adapter(tmp_path / "适配器")
    check_shapes(read, ModelFolder.open(folder))
    again = backend.load(folder, "fp32")
    again.attach("b", read, 0, values)
    np.testing.assert_allclose(again.logits(TEXT), expected, atol=3e-5)
    weights = MergedWeights(ModelFolder.open(folder), tmp_path / "适配器")
    merged = tiny_model(tmp_path / "merged", "qwen2" if name in BIASED else "llama", tied=weights.tied)
    save_file({n: weights.read(n) for n in weights.shapes()}, merged / "model.safetensors", metadata={"format": "pt"})
    np.testing.assert_allclose(backend.load(merged, "fp32").logits(TEXT), expected, atol=1e-4)


def scores_by_logits(session: Session) -> np.ndarray:
    """Log-probabilities of the supervised tokens from the model's own logits."""
    rows, found = batch(), []
    for ids, length, mask in zip(rows.ids, rows.lengths, rows.mask, strict=True):
        logprobs = log_softmax(session.logits(ids[:length].tolist()))
        found += [logprobs[t - 1, ids[t]] for t in np.nonzero(mask)[0]]
    return np.array(found)


@pytest.mark.parametrize("name", [name for name in MIXES if "dropout" not in MIXES[name]])
def test_torch_and_mlx_have_one_curve(tiny: Path, tied: Path, name: str) -> None:
    for backend in backends().values():
        if reason := backend.missing():
            pytest.skip(reason)
    folder = tied if name in BIASED else tiny
    curves = [started(backend, folder, steps=STEPS, **MIXES[name])[2] for backend in backends().values()]
    np.testing.assert_allclose(curves[0], curves[1], atol=2e-4)


@pytest.mark.parametrize("precision", ["8-bit", "4-bit"])
@pytest.mark.parametrize("name", ["dora lora+", "dora pissa rslora", "lora-fa lora+", "dora dropout", "head"])
def test_a_mix_learns_on_a_quantised_base(backend: Backend, tiny: Path, precision: Precision, name: str) -> None:
    _, _, losses = started(backend, tiny, precision, steps=12, **MIXES[name])
    assert losses[-1] < 0.8 * losses[0], losses


@pytest.mark.parametrize("start", ["default", "pissa"])
def test_head_and_embedding_of_a_tied_model_are_adapted_apart(
    backend: Backend, tied: Path, tmp_path: Path, start: str
) -> None:
    session, plan, _ = started(backend, tied, steps=6, targets=("embed_tokens", "lm_head"), start=start)
    np.testing.assert_allclose(scores_by_logits(session), session.score(batch()), atol=2e-5)
    write_adapter(tmp_path / "a", *tuner_of(plan).fold(plan, session.tensors("a")), "tied")
    model = ModelFolder.open(tied)
    weights = MergedWeights(model, tmp_path / "a")
    assert not weights.tied
    own = model.read("model.embed_tokens.weight")
    head, embedding = weights.read("lm_head.weight"), weights.read("model.embed_tokens.weight")
    assert min(np.abs(head - own).max(), np.abs(embedding - own).max(), np.abs(head - embedding).max()) > 1e-3
    merged = tiny_model(tmp_path / "merged", "qwen2", tied=False)
    save_file({n: weights.read(n) for n in weights.shapes()}, merged / "model.safetensors", metadata={"format": "pt"})
    expected = session.logits(TEXT)
    np.testing.assert_allclose(backend.load(merged, "fp32").logits(TEXT), expected, atol=1e-4)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_the_start_is_a_part_of_the_weight(backend: Backend, tiny: Path, start: str) -> None:
    session, plan, _ = started(backend, tiny, start=start, rank=4)
    tensors, settings = session.tensors("a"), plan.settings
    assert isinstance(settings, LowRankSettings)
    for target in plan.targets[:3]:
        name = "base_model.model." + target.module
        weight, scale = session.weight(target.module + ".weight"), settings.scale_of(target.module)
        part = scale * tensors[name + B] @ tensors[name + A]
        if start == "pissa":
            u, s, v = np.linalg.svd(weight.astype(np.float64), full_matrices=False)
            np.testing.assert_allclose(part, (u[:, :4] * s[:4]) @ v[:4], atol=1e-5)
        else:
            np.testing.assert_allclose(tensors[name + B].T @ tensors[name + B], np.eye(4), atol=1e-5)
            np.testing.assert_allclose(part / scale, tensors[name + B] @ tensors[name + B].T @ weight, atol=1e-5)
        np.testing.assert_array_equal(tensors[name + A], tensors[name + A0])
        np.testing.assert_array_equal(tensors[name + B], tensors[name + B0])


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_in_bf16_the_start_is_exactly_the_base(backend: Backend, tiny: Path, start: str) -> None:
    session, _, _ = started(backend, tiny, "bf16", start=start)
    after = session.logits(TEXT)
    session.activate(None)
    np.testing.assert_array_equal(session.logits(TEXT), after)


@pytest.mark.parametrize("use_dora", [False, True])
def test_loftq_begins_nearer_to_the_unquantised_model(backend: Backend, tiny: Path, use_dora: bool) -> None:
    exact = backend.load(tiny, "fp32").logits(TEXT)
    targets = ("all-linear", "embed_tokens", "lm_head") if not use_dora else ("all-linear",)
    settings: dict[str, Any] = {"start": "loftq", "rank": 16, "use_dora": use_dora}
    session, plan, losses = started(backend, tiny, "4-bit", steps=10, targets=targets, **settings)
    assert not tuner_of(plan).neutral(plan)
    assert losses[-1] < 0.8 * losses[0]
    session, plan, _ = started(backend, tiny, "4-bit", **settings)
    stored, tensors = ModelFolder.open(tiny).read, session.tensors("a")
    for target in plan.targets:
        weight, held = stored(target.module + ".weight"), session.weight(target.module + ".weight")
        mended = tuner_of(plan).merge(target.module + ".weight", held, plan, tensors)
        name, scale = "base_model.model." + target.module, LowRankSettings(rank=16).scale
        np.testing.assert_allclose(mended, held + scale * tensors[name + B] @ tensors[name + A], atol=1e-5)
        before, after = (float(np.linalg.norm(weight - w)) for w in (held, mended))
        assert 0 < after < 0.9 * before
        if not use_dora:  # the nearest of its rank
            left = np.linalg.svd((weight - held).astype(np.float64), compute_uv=False)[16:]
            assert after == pytest.approx(float(np.sqrt((left**2).sum())), rel=1e-4)
    with_loftq = session.logits(TEXT)
    session.activate(None)
    assert np.abs(with_loftq - exact).mean() < 0.9 * np.abs(session.logits(TEXT) - exact).mean()


def test_a_step_without_a_supervised_token_changes_nothing(backend: Backend, tiny: Path) -> None:
    session, _, _ = started(backend, tiny)
    before, rows = session.tensors("a"), batch()
    result = session.step([replace(rows, mask=np.zeros_like(rows.mask))], SFT, 1e-2)
    assert (result.loss, result.gradient_norm) == (0.0, 0.0)
    assert all(np.array_equal(value, before[name]) for name, value in session.tensors("a").items())


def test_what_is_named_twice_is_copied_once(tiny: Path) -> None:
    twice, once = (plan_of(tiny, also_train=kinds) for kinds in (("norms", "norms"), ("norms",)))
    assert twice.targets == once.targets


def test_dora_leaves_rows_of_zeros_as_they_are(backend: Backend, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "pruned 模型", "qwen2")
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name] = np.concatenate([np.zeros((3, weights[name].shape[1]), np.float32), weights[name][3:]])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    session, plan, losses = started(backend, folder, steps=5, use_dora=True)
    assert losses[-1] < losses[0]
    merged = tuner_of(plan).merge(name, weights[name], plan, session.tensors("a"))
    assert not merged[:3].any() and np.isfinite(merged).all()


def test_lora_plus_reaches_a_loss_sooner(backend: Backend, tiny: Path) -> None:
    plain, plus = (started(backend, tiny, steps=12, b_rate_ratio=ratio)[2] for ratio in (1.0, 4.0))
    assert plus[-1] < plain[-1] - 0.1


def test_lora_fa_needs_less_memory_for_activations_on_mlx(tmp_path: Path) -> None:
    """On torch what is kept is counted, see test_low_rank_peft.py."""
    if reason := backends()["mlx"].missing():
        pytest.skip(reason)
    import mlx.core as mx

    # Half a block's input more or less was seen at the peak from run to run, so there are blocks enough that it is little.
    folder = tiny_model(tmp_path / "deep", layers=12)
    peaks = []
    for freeze_a in (False, True):
        session, _, _ = started(backends()["mlx"], folder, freeze_a=freeze_a, targets=("down_proj",))
        rows = batch_of(rows=8, length=256)
        session.step([rows], SFT, 1e-3)
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        session.step([rows], SFT, 1e-3)
        peaks.append(mx.get_peak_memory() - before)
    inputs = 12 * 8 * 255 * 128 * 4  # of down_proj in twelve blocks, fp32; the last token predicts nothing
    assert peaks[0] - peaks[1] >= 0.9 * inputs, peaks


def test_patterns_count_as_peft_counts_them(tiny: Path) -> None:
    plan = plan_of(tiny, rank=4, rank_pattern=("q_proj=2", "layers.1.mlp.up_proj=6"), alpha_pattern=("up_proj=3",))
    shapes, settings = tuner_of(plan).shapes(plan), plan.settings
    assert isinstance(settings, LowRankSettings)
    ranks = {name: shape[0] for name, shape in shapes.items() if name.endswith(A)}
    assert {rank for name, rank in ranks.items() if "q_proj" in name} == {2}
    assert ranks["base_model.model.model.layers.1.mlp.up_proj" + A] == 6
    assert ranks["base_model.model.model.layers.0.mlp.up_proj" + A] == 4
    assert settings.scale_of("model.layers.1.mlp.up_proj") == 0.5
    assert settings.scale_of("model.layers.0.self_attn.q_proj") == 2.0
    read = tuner_of(plan).read(peft_config(tuner_of(plan).config(plan), "test"), shapes)
    assert tuner_of(read).shapes(read) == shapes
    assert isinstance(read.settings, LowRankSettings)
    for target in plan.targets:
        assert read.settings.scale_of(target.module) == settings.scale_of(target.module)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"start": "pissa", "dropout": 0.1}, "drop a part of the base's weights"),
    ({"targets": ("embed_tokens",), "freeze_a": True}, "nothing would be learned"),
    ({"targets": ("embed_tokens",), "use_dora": True}, "DoRA is for layers inside the blocks"),
    ({"targets": ("q_proj", "lm_head"), "use_dora": True}, "DoRA is for layers inside the blocks"),
    ({"embedding_rate_ratio": 2.0}, "no embedding is adapted"),
    ({"train_bias": "all"}, "this model has no such biases"),
    ({"rank_pattern": ("x_proj=2",)}, "x_proj: no adapted layer has that name"),
    ({"rank_pattern": ("q_proj=65",)}, "rank is 65, but model.layers.0.self_attn.q_proj is 64 × 64"),
    ({"rank_pattern": ("q_proj=2.5",)}, "a whole number above 0"),
    ({"targets": ("lm_head",), "layers": "last:1"}, "lm_head are not in any block"),
    ({"also_train_rate": 0.5}, "nothing is trained in full"),
    ({"rank_pattern": ("q_proj=999",)}, "Lower --rank-pattern to 64 or less"),
    ({"alpha_pattern": ("q_proj",)}, "is not valid"),
    ({"alpha_pattern": ("q_proj=0",)}, "a number above 0"),
    ({"alpha_pattern": ("q_(proj=2",)}, "is not valid"),
    ({"b_rate_ratio": 0}, "greater than 0"),
]


@pytest.mark.parametrize(("settings", "said"), REFUSED)
def test_what_makes_no_sense_is_refused_with_the_reason(tiny: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said) as error:
        plan_of(tiny, **settings)
    assert str(error.value).endswith(".")


def test_loftq_is_refused_where_nothing_is_quantised(tiny: Path) -> None:
    settings = LowRankSettings(start="loftq")
    reason = tuners()["low_rank"].refusal(settings, "fp32")
    assert reason is not None and "quantises nothing" in reason
    assert tuners()["low_rank"].refusal(settings, "4-bit") is None
    with pytest.raises(SpecError, match="unquantised weights"):
        backends()["torch"].load(tiny, "fp32").attach("a", plan_of(tiny, start="loftq"), 1)


def test_an_adapted_head_does_not_share_a_pass(tiny: Path) -> None:
    tuner = tuners()["low_rank"]
    assert tuner.sharing_refusal(plan_of(tiny, targets=("all-linear", "embed_tokens"))) is None
    assert "lm_head" in str(tuner.sharing_refusal(plan_of(tiny, targets=("q_proj", "lm_head"))))
