"""NEFTune on both backends: noise of the paper's size, the same everywhere, from the step's seed alone, in training only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conforming import MORE_STEPS, RATES, SFT, batch, make_plan, make_spec
from finetune_local.backend import Backend, Session, StepRequest, backends
from finetune_local.spec.initial import row_noise
from finetune_local.spec.run import TrainingSettings
from finetune_local.spec.tuners import VirtualIds
from finetune_local.system.paths import Home
from finetune_local_backends.virtual import batch_noise
from tasks import batch_of, pieces, plan_of
from tiny import HIDDEN, tiny_model
from training import assert_same, losses, ready_of, result, train

STRONG = 15.0


def test_the_noise_has_the_papers_size() -> None:
    noise = row_noise(1, list(range(200)), 64, 5.0)
    bound = 5.0 / np.sqrt(200 * 64)
    assert noise.shape == (200, 64) and noise.dtype == np.float32
    assert 0.99 * bound < np.abs(noise).max() <= bound
    assert abs(noise.mean()) < 0.02 * bound
    assert noise.std() == pytest.approx(bound / np.sqrt(3), rel=0.02)


def test_a_rows_noise_follows_from_its_tokens_and_the_seed_alone() -> None:
    rows = batch_of(4, 20)
    whole = batch_noise(rows, [5.0] * 4, 7, 8, VirtualIds())
    assert whole is not None
    for n, part in enumerate(pieces(rows, 1)):
        alone = batch_noise(part, [5.0], 7, 8, VirtualIds())
        length = int(rows.lengths[n])
        assert alone is not None
        np.testing.assert_array_equal(alone[0, :length], whole[n, :length])
        assert not whole[n, length:].any() and np.abs(whole[n, :length]).min() > 0
    other = batch_noise(rows, [5.0] * 4, 8, 8, VirtualIds())
    assert other is not None and np.abs(other - whole)[0].min() > 0
    before = batch_noise(rows, [5.0, 0.0, 5.0, 5.0], 7, 8, VirtualIds(3, 2))
    assert before is not None and before.shape == (8, 23, 8)
    assert not before[:, :3].any() and not before[[1, 5]].any()
    np.testing.assert_array_equal(before[4, 3:], whole[0])
    assert batch_noise(rows, [0.0] * 4, 7, 8, VirtualIds()) is None


def embedded(backend: Backend, session: Any) -> list[np.ndarray]:
    """A list that fills with what the first block is given."""
    seen: list[np.ndarray] = []
    if backend.name == "torch":
        block = session._base.body.layers[0]
        block.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().float().numpy()))
        return seen
    import mlx.core as mx

    block = session.model.blocks()[0]
    usual = type(block)

    def call(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(np.array(mx.stop_gradient(x).astype(mx.float32)))
        return usual.__call__(self, x, *args, **kwargs)

    block.__class__ = type("Watched", (usual,), {"__call__": call})
    return seen


@pytest.mark.parametrize("family", ["llama", "gemma", "gemma3_text"])
def test_the_first_block_sees_embedding_plus_noise(tmp_path: Path, backend: Backend, family: str) -> None:
    from safetensors.numpy import load_file

    folder = tiny_model(tmp_path, family)
    session = backend.load(folder, "fp32")
    session.attach("a", plan_of(folder), 1)
    session.prepare("a", TrainingSettings(neftune_alpha=5.0))
    seen, rows = embedded(backend, session), batch_of(3, 20)
    session.seed(11)
    session.step([rows], SFT, 0.0)
    matrix = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    factor = np.sqrt(HIDDEN) if family.startswith("gemma") else 1.0
    width = seen[0].shape[1]
    for n, length in enumerate(rows.lengths):
        ids = rows.ids[n, :length]
        expected = (matrix[ids] + row_noise(11, ids, HIDDEN, 5.0)) * factor
        np.testing.assert_allclose(seen[0][n, :length], expected[:width], atol=1e-5)
    seen.clear()
    session.score(rows)
    np.testing.assert_allclose(seen[0][0], (matrix[rows.ids[0, :width]] * factor), atol=1e-5)


def curve(session: Session, folder: Path, size: int = 4, **training: Any) -> list[float]:
    session.attach("a", plan_of(folder), 3)
    session.prepare("a", TrainingSettings(**training))
    done = []
    for step in range(20):
        session.seed(step)
        done.append(session.step(pieces(batch_of(seed=step % 3), size), SFT, 5e-3).loss)
    return done


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_both_backends_have_one_curve(tmp_path: Path, family: str) -> None:
    if lacking := [b.name for b in backends().values() if b.missing()]:
        pytest.skip(f"parity needs both backends; missing: {', '.join(lacking)}")
    folder = tiny_model(tmp_path, family)
    one, other = (curve(b.load(folder, "fp32", "cpu"), folder, neftune_alpha=STRONG) for b in backends().values())
    quiet = curve(backends()["torch"].load(folder, "fp32", "cpu"), folder)
    assert np.abs(np.subtract(one, quiet)).max() > 0.1, "the noise must be felt"
    np.testing.assert_allclose(other, one, atol=1e-3)


def test_off_is_off_and_splits_and_checkpointing_change_nothing(backend: Backend, tiny: Path) -> None:
    assert curve(backend.load(tiny, "fp32"), tiny, neftune_alpha=0.0) == curve(backend.load(tiny, "fp32"), tiny)
    expected = curve(backend.load(tiny, "fp32"), tiny, neftune_alpha=STRONG)
    split = curve(backend.load(tiny, "fp32"), tiny, 1, neftune_alpha=STRONG)
    np.testing.assert_allclose(split, expected, atol=1e-4)
    again = curve(backend.load(tiny, "fp32"), tiny, neftune_alpha=STRONG, gradient_checkpointing=True)
    np.testing.assert_allclose(again, expected, atol=1e-5)


@pytest.mark.parametrize("method", ["full", "prefix", "prompt", "prompt-ensemble"])
def test_other_methods_take_it_too(backend: Backend, tiny: Path, method: str) -> None:
    from finetune_local.spec.tuners import presets

    if method not in presets():
        pytest.skip(f"{method} is not written yet")
    spec = make_spec(method, "fp32", neftune_alpha=2.0)
    session = backend.load(tiny, "fp32")
    session.attach("a", make_plan(spec, tiny), 1)
    session.prepare("a", spec.training)
    done = []
    for step in range(MORE_STEPS.get(method, 10)):
        session.seed(step)
        done.append(session.step([batch()], SFT, RATES.get(method, 1e-2)).loss)
    assert done[-1] < 0.8 * done[0]


def test_trained_at_once_each_has_its_own_noise(backend: Backend, tiny: Path) -> None:
    session = backend.load(tiny, "fp32")
    rows, alone = [batch_of()], {}
    for name, alpha in (("loud", STRONG), ("quiet", 0.0)):
        session.attach(name, plan_of(tiny), 1)
        session.prepare(name, TrainingSettings(neftune_alpha=alpha))
        session.seed(5)
        alone[name] = session.step(rows, SFT, 0.0).loss
    session.seed(5)
    together = session.step_many([StepRequest(name, rows, SFT, 0.0) for name in alone])
    assert abs(alone["loud"] - alone["quiet"]) > 1e-3
    assert [r.loss for r in together] == pytest.approx(list(alone.values()), abs=1e-5)


def test_a_resumed_run_goes_on_as_it_would_have(make_run: Callable[..., Any], home: Home) -> None:
    whole, cut = make_run("whole", neftune_alpha=STRONG), make_run("cut", neftune_alpha=STRONG)
    expected = losses(train(whole, home))
    seen = iter(range(100))
    train(cut, home, stop=lambda: next(seen) >= 5)
    assert ready_of(cut, home).state.step < len(expected)
    later = losses(train(cut, home))
    assert later and all(later[step] == expected[step] for step in later)
    assert_same(result(whole), result(cut))
