"""LongLoRA's shifted sparse attention on both backends: equal to its definition as a mask, causal, cheaper, and in training only."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conforming import SFT
from finetune_local.backend import Backend, Session, StepRequest, backends
from finetune_local.spec.numerics.shifted import automatic_group
from finetune_local.spec.run import TrainingSettings
from finetune_local.system.errors import Unsupported
from tasks import batch_of, pieces, plan_of
from tiny import tiny_model

LENGTH = 21
IDS = np.random.default_rng(3).integers(3, 380, LENGTH).tolist()


def in_training(backend: Backend, session: Any, group: int) -> AbstractContextManager[None]:
    """What a step computes within."""
    if backend.name == "torch":
        from finetune_local_backends.torch.training import shifted

        return shifted.shifted(session._base, group)
    from finetune_local_backends.mlx.training import shifted as on_mlx

    return on_mlx.shifted(session.model, group)


def attention_of(
    backend: Backend, group: int, q: np.ndarray, k: np.ndarray, v: np.ndarray, eager: bool = False
) -> np.ndarray:
    """The backend's function on (rows, heads, length, d); result of the same shape."""
    if backend.name == "torch":
        import torch
        from transformers.models.llama.modeling_llama import LlamaAttention, LlamaConfig

        from finetune_local_backends.torch.training import shifted

        module = LlamaAttention(LlamaConfig(hidden_size=16, num_attention_heads=2), 0).eval()
        before = shifted._now
        shifted._now = shifted._Now(group, "eager" if eager else "sdpa")
        try:
            out, _ = shifted.attention(
                module, *(torch.from_numpy(t) for t in (q, k, v)), None, scaling=q.shape[-1] ** -0.5
            )
        finally:
            shifted._now = before
        return out.transpose(1, 2).numpy()
    import mlx.core as mx
    from mlx_lm.models import llama

    from finetune_local_backends.mlx.training import shifted as on_mlx

    function = on_mlx._grouping(llama.scaled_dot_product_attention, group)
    return np.array(
        function(mx.array(q), mx.array(k), mx.array(v), cache=None, scale=q.shape[-1] ** -0.5, mask="causal")
    )


def by_definition(q: np.ndarray, k: np.ndarray, v: np.ndarray, group: int) -> np.ndarray:
    """The whole matrix of scores with a mask: look back, and within one's own group only."""
    heads, length = q.shape[1:3]
    k, v = (np.repeat(t, heads // t.shape[1], axis=1).astype(np.float64) for t in (k, v))
    place = np.arange(length)
    result = np.zeros(q.shape)
    for head in range(heads):
        moved = -(-group // 2) if head >= heads // 2 else 0
        number = (place + moved) // group
        seen = (place[None] <= place[:, None]) & (number[None] == number[:, None])
        scores = q[:, head].astype(np.float64) @ k[:, head].transpose(0, 2, 1) / np.sqrt(q.shape[-1])
        scores = np.where(seen, scores, -np.inf)
        request = np.exp(scores - scores.max(-1, keepdims=True))
        result[:, head] = request / request.sum(-1, keepdims=True) @ v[:, head]
    return result


@pytest.mark.parametrize(("heads", "keys"), [(4, 2), (4, 4), (6, 2), (9, 3), (4, 1), (1, 1), (3, 3)])
@pytest.mark.parametrize("group", [2, 3, 8, 20, 64])
def test_it_is_the_mask_by_definition(backend: Backend, heads: int, keys: int, group: int) -> None:
    rng = np.random.default_rng(heads)
    for length in (1, group // 2, group, LENGTH, 24):
        q, k, v = (rng.normal(size=(2, n, length, 8)).astype(np.float32) for n in (heads, keys, keys))
        expected = by_definition(q, k, v, group)
        np.testing.assert_allclose(attention_of(backend, group, q, k, v), expected, atol=1e-5)
        if backend.name == "torch":
            np.testing.assert_allclose(attention_of(backend, group, q, k, v, eager=True), expected, atol=1e-5)


@pytest.mark.parametrize("group", [6, 7])
def test_no_position_sees_a_later_one(backend: Backend, tiny: Path, group: int) -> None:
    session = backend.load(tiny, "fp32")
    with in_training(backend, session, group):
        whole = session.logits(IDS)
        for place in range(1, LENGTH):
            other = [*IDS[:place], (IDS[place] + 1) % 380, *IDS[place + 1 :]]
            changed = session.logits(other)
            np.testing.assert_allclose(changed[:place], whole[:place], atol=1e-5, err_msg=f"token {place}")
            assert np.abs(changed[place] - whole[place]).max() > 1e-3


def test_only_training_is_cut(backend: Backend, tiny: Path) -> None:
    training = TrainingSettings(attention="shifted", attention_group=6)
    session = backend.load(tiny, "fp32")
    before, rows = session.logits(IDS), batch_of(3, 20)
    session.attach("a", plan_of(tiny), 1)
    session.prepare("a", training)
    np.testing.assert_array_equal(session.logits(IDS), before)
    full = -float(session.score(rows).mean())
    cut = session.step([rows], SFT, 0.0).loss
    assert abs(cut - full) > 1e-3, "a step must compute in groups"
    assert session.step([rows], SFT, 0.0).loss == cut
    assert -float(session.score(rows).mean()) == full
    np.testing.assert_array_equal(session.logits(IDS), before)
    session.prepare("a", TrainingSettings())
    assert session.step([rows], SFT, 0.0).loss == pytest.approx(full, abs=1e-5)
    wide = training.model_copy(update={"attention_group": 40})
    session.prepare("a", wide)
    assert session.step([rows], SFT, 0.0).loss == pytest.approx(full, abs=1e-5), "one group is full attention"


def curve(session: Session, folder: Path, size: int = 4, **training: Any) -> list[float]:
    session.attach("a", plan_of(folder), 3)
    session.prepare("a", TrainingSettings(attention="shifted", **training))
    losses = []
    for step in range(20):
        session.seed(step)
        losses.append(session.step(pieces(batch_of(4, LENGTH, seed=step % 3), size), SFT, 5e-3).loss)
    return losses


@pytest.mark.parametrize("family", ["llama", "gemma", "qwen3"])
def test_both_backends_have_one_curve(tmp_path: Path, family: str) -> None:
    if lacking := [b.name for b in backends().values() if b.missing()]:
        pytest.skip(f"parity needs both backends; missing: {', '.join(lacking)}")
    folder = tiny_model(tmp_path, family)
    for more in ({"attention_group": 6}, {"attention_group": 5, "gradient_checkpointing": True}):
        one, other = (curve(b.load(folder, "fp32", "cpu"), folder, **more) for b in backends().values())
        assert one[-1] < one[0] - 0.3
        np.testing.assert_allclose(other, one, atol=1e-4)


def test_padding_micro_batches_and_checkpointing_change_nothing(backend: Backend, tiny: Path) -> None:
    expected = curve(backend.load(tiny, "fp32"), tiny, attention_group=6)
    for size in (1, 3):
        np.testing.assert_allclose(
            curve(backend.load(tiny, "fp32"), tiny, size, attention_group=6), expected, atol=1e-4
        )
    again = curve(backend.load(tiny, "fp32"), tiny, attention_group=6, gradient_checkpointing=True)
    np.testing.assert_allclose(again, expected, atol=1e-5)


def test_fewer_scores_are_computed(backend: Backend, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """L·G + what the last groups are padded with, not L²."""
    counted = [0]

    def counting(usual: Any) -> Any:
        def attention(q: Any, k: Any, *rest: Any, **more: Any) -> Any:
            counted[0] += q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]
            return usual(q, k, *rest, **more)

        return attention

    if backend.name == "torch":
        from torch.nn import functional as place

        name = "scaled_dot_product_attention"
    else:
        from mlx_lm.models import llama as place  # type: ignore[no-redef]

        name = "scaled_dot_product_attention"
    monkeypatch.setattr(place, name, counting(getattr(place, name)))
    session = backend.load(tiny, "fp32")
    ids = np.random.default_rng(0).integers(3, 380, 256).tolist()
    session.logits(ids)
    full, counted[0] = counted[0], 0
    assert full == 2 * 4 * 256 * 256
    with in_training(backend, session, 32):
        session.logits(ids)
    blocks, half = 2, 2 * (256 * 32)  # two of the four heads
    assert counted[0] == blocks * (half + 2 * (16 * 16 + 8 * 32 * 32))
    assert counted[0] < full / 7


def test_windows_no_narrower_than_a_group_are_no_hindrance(tmp_path: Path, backend: Backend) -> None:
    folder = tiny_model(tmp_path, "gemma3_text")  # windows of 64
    session = backend.load(folder, "fp32")
    session.attach("a", plan_of(folder), 1)
    with pytest.raises(Unsupported, match=r"only 64 positions.*--attention-group to 64"):
        session.prepare("a", TrainingSettings(attention="shifted", attention_group=65))
    session.prepare("a", TrainingSettings(attention="shifted", attention_group=64))
    assert np.isfinite(session.step([batch_of(2, 100)], SFT, 1e-3).loss)


def test_capped_scores_are_kept_or_refused(tmp_path: Path, backend: Backend) -> None:
    """Gemma 2 bends its scores: torch computes them written out, MLX's class in a way of its own."""
    folder = tiny_model(tmp_path, "gemma2")
    session = backend.load(folder, "fp32")
    session.attach("a", plan_of(folder), 1)
    training = TrainingSettings(attention="shifted", attention_group=40)
    if backend.name == "mlx":
        with pytest.raises(Unsupported, match="its own way"):
            session.prepare("a", training)
        return
    session.prepare("a", training)
    rows = batch_of(2, 20)  # one group: the same as full attention
    expected = -float(session.score(rows).mean())
    assert session.step([rows], SFT, 1e-3).loss == pytest.approx(expected, abs=1e-5)
    session.prepare("a", training.model_copy(update={"attention_group": 4}))
    assert abs(session.step([rows], SFT, 1e-3).loss - expected) > 1e-3


def test_positions_before_the_text_are_refused(backend: Backend, tiny: Path) -> None:
    session = backend.load(tiny, "fp32")
    session.attach("a", _prefix(tiny), 1)
    with pytest.raises(Unsupported, match="only the first group"):
        session.prepare("a", TrainingSettings(attention="shifted"))


def _prefix(folder: Path) -> Any:
    from conforming import make_plan, make_spec

    return make_plan(make_spec("prefix"), folder)


def test_adapters_trained_at_once_share_one_attention(backend: Backend, tiny: Path) -> None:
    session = backend.load(tiny, "fp32")
    rows = [batch_of(2, 20)]
    for name, kind in (("a", "shifted"), ("b", "full"), ("c", "shifted")):
        session.attach(name, plan_of(tiny), 1)
        session.prepare(name, TrainingSettings(attention=kind, attention_group=6))
    with pytest.raises(Unsupported, match="same --attention"):
        session.step_many([StepRequest(name, rows, SFT, 1e-3) for name in ("a", "b")])
    alone = session.step([*rows], SFT, 0.0).loss
    together = session.step_many([StepRequest(name, rows, SFT, 0.0) for name in ("a", "c")])
    assert [r.loss for r in together] == pytest.approx([alone, alone], abs=1e-5)


def test_odd_heads_in_a_whole_model(tmp_path: Path, backend: Backend) -> None:
    """Three key heads, as in SmolLM2: no half of them belongs to a half of the queries' heads."""
    from safetensors.numpy import load_file, save_file

    folder = tiny_model(tmp_path)
    weights = load_file(folder / "model.safetensors")
    for name in list(weights):
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            weights[name] = weights[name][:16]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"num_key_value_heads": 1}), "utf-8")
    session = backend.load(folder, "fp32")
    with in_training(backend, session, 64):
        one_group = session.logits(IDS)
    np.testing.assert_allclose(one_group, session.logits(IDS), atol=1e-5)


def test_a_model_with_attention_of_its_own_is_refused_on_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "torch" not in backends() or backends()["torch"].missing():
        pytest.skip("torch is not here")
    from transformers.models.llama import modeling_llama

    folder = tiny_model(tmp_path)
    session = backends()["torch"].load(folder, "fp32")
    session.attach("a", plan_of(folder), 1)

    class Own:
        def get_interface(self, _: str, usual: Any) -> Any:
            return usual

    monkeypatch.setattr(modeling_llama, "ALL_ATTENTION_FUNCTIONS", Own())
    with pytest.raises(Unsupported, match="their own way"):
        session.prepare("a", TrainingSettings(attention="shifted"))


@pytest.mark.parametrize("precision", ["bf16", "4-bit"])
def test_other_precisions_learn_so_too(backend: Backend, tiny: Path, precision: Any) -> None:
    session = backend.load(tiny, precision)
    session.attach("a", plan_of(tiny), 1)
    session.prepare("a", TrainingSettings(attention="shifted", attention_group=6))
    rows = [batch_of(3, LENGTH)]
    done = [session.step(rows, SFT, 1e-2).loss for _ in range(10)]
    assert done[-1] < 0.8 * done[0]


def test_the_automatic_group_is_a_quarter() -> None:
    assert [automatic_group(n) for n in (1, 8, 21, 8192)] == [2, 2, 6, 2048]
