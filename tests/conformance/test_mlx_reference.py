"""The MLX backend against plain numpy, and against itself cut up in other ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_local.spec.batch import Batch, Readout
from finetune_local.spec.objectives import Objective
from finetune_local.spec.run import TrainingSettings
from finetune_local.spec.tuners import PREFIX
from finetune_local.system.errors import AdapterError, Unsupported
from mlx_tools import IDS, MLX, RATE, SFT, assert_same, expected_scores, far, ready, train
from tasks import batch_of, pieces, plan_of
from tiny import FAMILIES, tiny_model


@pytest.mark.parametrize("family", [*FAMILIES, "gemma2"])
def test_score_and_loss_are_those_of_the_logits(tmp_path: Path, family: str) -> None:
    session = ready(tiny_model(tmp_path, family))
    batch = batch_of()
    expected = expected_scores(session, batch)
    np.testing.assert_allclose(session.score(batch), expected, atol=2e-5)
    assert session.step([batch], SFT, 0.0).loss == pytest.approx(-expected.mean(), abs=1e-5)


def test_padding_and_micro_batches_change_nothing(tiny: Path) -> None:
    whole, parts, padded = (ready(tiny, training={"max_gradient_norm": 1.0}) for _ in range(3))
    batch = batch_of(6, 24)
    rubbish = np.where(np.arange(40) < batch.lengths[:, None], np.pad(batch.ids, [(0, 0), (0, 16)]), 377)
    wide = Batch(rubbish.astype(np.int32), batch.lengths, np.pad(batch.mask, [(0, 0), (0, 16)]))
    for _ in range(3):
        results = [
            whole.step([batch], SFT, RATE),
            parts.step(pieces(batch, 1), SFT, RATE),
            padded.step([wide], SFT, RATE),
        ]
        for other in results[1:]:
            assert other.loss == pytest.approx(results[0].loss, abs=1e-5)
            assert other.gradient_norm == pytest.approx(results[0].gradient_norm, rel=1e-4)
    assert far(whole.tensors("a"), parts.tensors("a")) < 1e-4
    assert far(whole.tensors("a"), padded.tensors("a")) < 1e-4


@pytest.mark.parametrize("method", ["lora", "dora", "full"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_computing_twice_to_save_memory_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, family: str
) -> None:
    """Checkpointed blocks, and the head in chunks of 7 positions, with dropout where the method has it."""
    folder = tiny_model(tmp_path, family)
    settings = {} if method == "full" else {"dropout": 0.2, "layers": "last:1"}
    plain = ready(folder, method, **settings)
    losses = train(plain, 3)
    monkeypatch.setattr("finetune_local_backends.mlx.session._LOGITS_BYTES", 7 * 4 * 384)
    again = ready(folder, method, training={"gradient_checkpointing": True}, **settings)
    np.testing.assert_allclose(train(again, 3), losses, atol=1e-5)
    assert far(plain.tensors("a"), again.tensors("a")) < 1e-4
    assert again.logits(IDS).shape == (len(IDS), 384)


@pytest.mark.parametrize("method", ["lora", "dora", "full"])
def test_going_on_from_the_optimizers_state_is_exact(tiny: Path, method: str) -> None:
    settings = {} if method == "full" else {"dropout": 0.1}
    whole = ready(tiny, method, training={"weight_decay": 0.1}, **settings)
    losses = train(whole, 6)
    first = ready(tiny, method, training={"weight_decay": 0.1}, **settings)
    assert train(first, 3) == losses[:3]
    second = MLX.load(tiny, "fp32", "cpu")
    shuffled = dict(reversed(first.tensors("a").items()))  # a file has them in another order
    second.attach("a", plan_of(tiny, method, **settings), 0, shuffled)
    second.prepare("a", TrainingSettings(weight_decay=0.1))
    second.restore_optimizer(first.optimizer_state())
    assert train(second, 3, first=3) == losses[3:]
    assert_same(second.tensors("a"), whole.tensors("a"))
    assert_same(second.optimizer_state(), whole.optimizer_state())  # type: ignore[arg-type]


def test_a_state_of_another_kind_is_refused(tiny: Path) -> None:
    session = ready(tiny)
    state = session.optimizer_state()
    with pytest.raises(AdapterError, match="another optimizer or adapter"):
        session.restore_optimizer({k: v for k, v in state.items() if "layers.1" not in k})
    name = next(k for k in state if "lora_A" in k)
    with pytest.raises(AdapterError, match="shape"):
        session.restore_optimizer({**state, name: np.zeros((3, 3), np.float32)})


def test_swapping_back_is_exact(tiny: Path) -> None:
    session = MLX.load(tiny, "fp32", "cpu")
    before = session.logits(IDS)
    seen: dict[str | None, np.ndarray] = {None: before}
    for name, method, rank in (("lora", "lora", 2), ("dora", "dora", 4), ("full", "full", 0), ("two", "lora", 8)):
        session.attach(name, plan_of(tiny, method, **({"rank": rank} if rank else {})), seed=len(name))
        session.prepare(name, TrainingSettings())
        train(session, 2)
        seen[name] = session.logits(IDS)
        assert np.abs(seen[name] - before).max() > 1e-3
    for name in ("dora", None, "full", "two", "lora", "full", None):
        session.activate(name)
        np.testing.assert_array_equal(session.logits(IDS), seen[name], err_msg=str(name))
    assert session.adapters() == ["lora", "dora", "full", "two"]
    session.detach("dora")
    session.activate("two")
    np.testing.assert_array_equal(session.logits(IDS), seen["two"])
    for name in session.adapters():
        session.detach(name)
    np.testing.assert_array_equal(session.logits(IDS), before)
    assert not any(type(m).__name__ == "WrappedModule" for m in session.model.module.modules())  # type: ignore[attr-defined]
    with pytest.raises(AdapterError, match="dora"):
        session.activate("dora")


def test_training_leaves_the_other_adapters_and_the_active_one_alone(tiny: Path) -> None:
    session = ready(tiny)
    session.attach("other", plan_of(tiny, "dora"), seed=1)
    other = session.tensors("other")
    shown = session.logits(IDS)
    train(session, 2)
    np.testing.assert_array_equal(session.logits(IDS), shown)
    assert_same(session.tensors("other"), other)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_dropout_follows_the_seed(tiny: Path, method: str) -> None:
    def losses(seed: int, rate: float = 0.3) -> list[float]:
        session = ready(tiny, method, dropout=rate)
        train(session, 1)  # B is zero at first, and then dropout changes nothing
        session.seed(seed)
        return [session.step([batch_of()], SFT, RATE).loss, float(session.score(batch_of()).sum())]

    assert losses(1) == losses(1)
    assert losses(1)[0] != losses(2)[0]
    assert losses(1, 0.0) == losses(2, 0.0)


def test_dora_with_dropout_is_the_published_formula(tiny: Path) -> None:
    """PEFT's: y + (g − 1)·W·d + g·s·B·A·d with d the dropped input and g = m/‖W + s·B·A‖, here in numpy."""
    import mlx.core as mx

    session = ready(tiny, "dora", dropout=0.4, targets=("down_proj",), layers="last:1")
    train(session, 3)
    tensors = session.tensors("a")
    name = PREFIX + "model.layers.1.mlp.down_proj"
    layer = session.model.module.model.layers[1].mlp.down_proj  # type: ignore[attr-defined]
    a, b, m = (tensors[name + s] for s in (".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"))
    weight = np.array(layer.base.weight)
    x = np.random.default_rng(0).normal(size=(5, weight.shape[1])).astype(np.float32)
    update = 2.0 * b @ a
    factor = m / np.linalg.norm(weight + update, axis=1)
    without = np.array(layer(mx.array(x)))
    np.testing.assert_allclose(without, factor * (x @ (weight + update).T), atol=1e-5)
    layer.layers.layer.key = mx.random.key(3)
    dropped = np.array(layer.layers.layer.dropped(mx.array(x)))
    assert 0.2 < (dropped == 0).mean() < 0.6
    expected = x @ weight.T + (factor - 1) * (dropped @ weight.T) + factor * (dropped @ update.T)
    np.testing.assert_allclose(np.array(layer(mx.array(x))), expected, atol=1e-5)


@pytest.mark.parametrize(("precision", "bits"), [("4-bit", 4), ("8-bit", 8)])
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_quantised_base_trains(tmp_path: Path, precision: Any, bits: int, method: str) -> None:
    folder = tiny_model(tmp_path, "qwen2")
    session = ready(folder, method, precision)
    layer = session.model.module.model.layers[0].mlp.down_proj.base  # type: ignore[attr-defined]
    assert (layer.bits, layer.group_size) == (bits, 64)
    assert type(session.model.module.model.embed_tokens).__name__ == "Embedding"  # type: ignore[attr-defined]
    losses = train(session, 12)
    assert losses[-4:] < losses[:4]
    if method == "dora":  # at the start it is the base itself
        fresh = MLX.load(folder, precision, "cpu")
        base = fresh.logits(IDS)
        fresh.attach("a", plan_of(folder, "dora"), seed=0)
        np.testing.assert_allclose(fresh.logits(IDS), base, atol=1e-4)


def test_unpacking_equals_the_quantised_product(tiny: Path) -> None:
    """Many rows are multiplied with the unpacked weight on a CPU, few by MLX's own kernel."""
    session = MLX.load(tiny, "4-bit", "cpu")
    together = session.logits(IDS)
    decoder = session.decoder()
    apart = [decoder.feed([[token]])[0] for token in IDS]
    np.testing.assert_allclose(together, apart, atol=2e-4)


def test_groups_are_of_32_where_64_does_not_divide(tmp_path: Path) -> None:
    from mlx import nn

    from finetune_local_backends.mlx.base import load

    module = nn.Module()
    module.layers = [nn.Module()]
    module.layers[0].small, module.layers[0].odd = nn.Linear(96, 8), nn.Linear(40, 8)
    with pytest.raises(Unsupported, match=r"layers\.0\.odd has 40 inputs"):
        load._quantise(tmp_path, module, load._affine(4, MLX.devices()[-1]))
    assert module.layers[0].small.group_size == 32


@pytest.mark.parametrize("method", ["lora", "full"])
def test_bf16_trains_with_fp32_parameters(tmp_path: Path, method: str) -> None:
    import mlx.core as mx

    folder = tiny_model(tmp_path, dtype="bfloat16")
    session = ready(folder, method, "bf16")
    before = session.logits(IDS)
    session.activate(None)
    base = session.logits(IDS)
    np.testing.assert_array_equal(before, base)
    session.activate("a")
    losses = train(session, 8)
    assert losses[-1] < losses[0] - 0.1
    assert session.model.module.model.embed_tokens.weight.dtype == mx.bfloat16  # type: ignore[attr-defined]
    fine = session.tensors("a")
    assert all(t.dtype == np.float32 for t in fine.values())
    changed = next(t for n, t in fine.items() if "q_proj" in n)
    assert (changed.view(np.uint32) & 0xFFFF).any()  # finer than bf16
    session.activate(None)
    np.testing.assert_array_equal(session.logits(IDS), base)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma"])
def test_all_weights_have_their_names_in_the_folder(tmp_path: Path, family: str) -> None:
    from safetensors.numpy import load_file

    folder = tiny_model(tmp_path, family)
    session = ready(folder, "full")
    stored = {PREFIX + n: t for n, t in load_file(folder / "model.safetensors").items()}
    assert_same(session.tensors("a"), stored)
    train(session, 1)
    moved = session.tensors("a")
    assert [n for n in stored if np.array_equal(moved[n], stored[n])] == []


def test_a_head_stored_beside_the_embedding_it_is_tied_to(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = tiny_model(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    session = ready(folder, "full")
    train(session, 1)
    given = session.tensors("a")
    np.testing.assert_array_equal(given[PREFIX + "lm_head.weight"], given[PREFIX + "model.embed_tokens.weight"])
    session.detach("a")
    given[PREFIX + "lm_head.weight"] = given[PREFIX + "lm_head.weight"] + 1
    with pytest.raises(AdapterError, match="one matrix for both"):
        session.attach("a", plan_of(folder, "full"), 0, given)


def test_all_weights_of_a_quantised_base_are_refused(tiny: Path) -> None:
    with pytest.raises(Unsupported, match="Use --precision bf16"):
        ready(tiny, "full", "4-bit")


class _NotFinite(Objective):
    key = title = "nan"

    def loss(self, ops: Any, readout: Readout, batch: Batch, total: float) -> Any:
        return ops.sum(readout.logprobs) * float("nan")


def test_a_loss_that_is_not_finite_is_told_and_not_applied(tiny: Path) -> None:
    session = ready(tiny)
    train(session, 2)
    tensors, state = session.tensors("a"), session.optimizer_state()
    result = session.step([batch_of()], _NotFinite(), RATE)
    assert np.isnan(result.loss)
    assert_same(session.tensors("a"), tensors)
    assert_same(session.optimizer_state(), state)  # type: ignore[arg-type]
