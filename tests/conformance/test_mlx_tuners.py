"""What tuners need of an MLX session: learning rates by tensor, penalties, trackers, virtual tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.run import TrainingSettings
from finetune_local.spec.tuners import Array, VirtualIds
from finetune_local.system.errors import AdapterError, Unsupported
from mlx_made import PLAN, Attach, attached, know, scaling
from mlx_tools import IDS, MLX, RATE, SFT, assert_same, train
from tasks import batch_of
from tiny import tiny_model

MLP = "model.layers.1.mlp"
HARD = ([11, 12, 13], [21, 22, 23])


def test_frozen_tensors_and_rates(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"slow": np.ones(64), "fast": np.ones(64), "frozen": np.full(64, 0.9)}
    paths = {f"model.layers.{n}.mlp": name for n, name in enumerate(("slow", "fast"))} | {"model.norm": "frozen"}
    know(monkeypatch, own, scaling(paths), {"fast": 4.0, "frozen": 0.0})
    session = MLX.load(tiny, "fp32", "cpu")
    assert session.attach("m", PLAN, 1) == 128
    session.prepare("m", TrainingSettings(weight_decay=0.1))
    session.step([batch_of()], SFT, 1e-3)
    after, state = session.tensors("m"), session.optimizer_state()
    np.testing.assert_array_equal(after["frozen"], np.full(64, 0.9, np.float32))
    assert {name for name in state if name.startswith("exp_avg.")} == {"exp_avg.slow", "exp_avg.fast"}
    for name, rate in (("slow", 1e-3), ("fast", 4e-3)):  # AdamW's first update: decay, then the rate by the sign
        sign = np.sign(state["exp_avg." + name])
        np.testing.assert_allclose(after[name], 1 - rate * 0.1 - rate * sign, atol=2e-5)


def test_a_penalty_is_in_the_gradient_once_and_not_in_the_loss(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune_local_backends.mlx.layers.wrapped import AdapterLayer, MlxLayers

    class Pulled(AdapterLayer):
        scale: Any

        def __call__(self, base: Any, *args: Any) -> Any:
            return base(*args) * self.scale

        def penalty(self) -> Any:
            return (3.0 * self.scale).sum()

    def attach(weight: bool) -> Attach:
        def made(model: Any, plan: AdapterPlan, tensors: Mapping[str, np.ndarray]) -> Any:
            layer = Pulled(MLP, {"scale": "s"})
            if not weight:
                layer.penalty = lambda: None  # type: ignore[method-assign]
            return MlxLayers(tensors, [(model.place_of(MLP), layer)])

        return made

    steps, gradients = [], []
    for weight in (False, True):
        know(monkeypatch, {"s": np.ones(64)}, attach(weight))
        session = attached(tiny, {"max_gradient_norm": 0.0, "beta1": 0.0})
        steps.append(session.step([batch_of(), batch_of(2, 16, seed=9)], SFT, RATE))
        gradients.append(session.optimizer_state()["exp_avg.s"])
    assert steps[0].loss == pytest.approx(steps[1].loss, abs=1e-6)
    np.testing.assert_allclose(gradients[1], gradients[0] + 3.0, atol=1e-4)


class Halver:
    """A tracker that halves a tensor every second step and remembers what it saw."""

    def __init__(self) -> None:
        self.count = np.zeros((), np.int64)
        self.norms: list[float] = []

    def update(self, tensors: Mapping[str, Array], gradients: Mapping[str, Array]) -> dict[str, Array]:
        assert tensors.keys() == gradients.keys() == {"s"}
        self.count = self.count + 1
        self.norms.append(float(np.linalg.norm(gradients["s"])))
        return {"s": tensors["s"] / 2} if self.count % 2 == 0 else {}

    def state(self) -> dict[str, Array]:
        return {"count": self.count}

    def restore(self, state: Mapping[str, Array]) -> None:
        self.count = np.asarray(state["count"])


def test_a_tracker_sees_the_clipped_gradients_changes_tensors_and_is_saved(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = know(monkeypatch, {"s": np.ones(64), "f": np.ones(64)}, scaling({MLP: "s", "model.norm": "f"}), {"f": 0.0})
    family.kept = Halver()
    session = attached(tiny, {"max_gradient_norm": 0.01})
    train(session, 1)
    assert session.tensors("m")["s"].mean() > 0.9
    train(session, 1, first=1)
    assert session.tensors("m")["s"].mean() < 0.55
    np.testing.assert_allclose(family.kept.norms, [0.01, 0.01], rtol=1e-3)
    train(session, 1, first=2)
    state, tensors = session.optimizer_state(), session.tensors("m")
    assert state["tracker:count"] == 3
    expected = train(session, 2, first=3)
    family.kept = Halver()
    other = MLX.load(tiny, "fp32", "cpu")
    other.attach("m", PLAN, 1, tensors)
    other.prepare("m", TrainingSettings(max_gradient_norm=0.01))
    other.restore_optimizer(state)
    assert train(other, 2, first=3) == expected
    assert_same(other.tensors("m"), session.tensors("m"))
    family.kept = None
    other.prepare("m", TrainingSettings())
    with pytest.raises(AdapterError, match="another optimizer or adapter"):
        other.restore_optimizer(state)


def prompts(model: Any, plan: AdapterPlan, tensors: Mapping[str, np.ndarray]) -> Any:
    """Prompt tuning in its plainest form: virtual ids are rows of the tensors p0, p1, … one after the other."""
    import mlx.core as mx

    from finetune_local_backends.mlx.layers.wrapped import AdapterLayer, MlxLayers

    class Prompted(AdapterLayer):
        def __call__(self, base: Any, ids: Any) -> Any:
            rows = base.weight.shape[0]
            own = mx.concatenate([getattr(self, name) for name in self.names])
            real = base(mx.minimum(ids, rows - 1))
            virtual = own[mx.clip(ids - rows, 0, own.shape[0] - 1)]
            return mx.where((ids >= rows)[..., None], virtual, real)

    path = "model.embed_tokens"
    return MlxLayers(tensors, [(model.place_of(path), Prompted(path, {name: name for name in tensors}))])


def rows_of(folder: Path, ids: list[int]) -> np.ndarray:
    session = MLX.load(folder, "fp32", "cpu")
    return session.weight("model.embed_tokens.weight")[ids]


def test_a_prompt_of_real_tokens_rows_is_these_tokens(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ensemble of two: logits are the first one's, scores the mean, a decoder's rows take turns."""
    base = MLX.load(tiny, "fp32", "cpu")
    own = {f"p{n}": rows_of(tiny, hard) for n, hard in enumerate(HARD)}
    know(monkeypatch, own, prompts, virtual=VirtualIds(3, 2))
    session = MLX.load(tiny, "fp32", "cpu")
    plain = session.logits(IDS)
    session.attach("m", PLAN, 1)
    np.testing.assert_allclose(session.logits(IDS), base.logits([*HARD[0], *IDS])[3:], atol=2e-5)
    batch = batch_of(3, 12)
    scores = []
    for hard in HARD:
        ids = np.concatenate([np.tile(np.array(hard, np.int32), (3, 1)), batch.ids], axis=1)
        mask = np.pad(batch.mask, [(0, 0), (3, 0)])
        scores.append(base.score(type(batch)(ids, batch.lengths + 3, mask)))
    np.testing.assert_allclose(session.score(batch), (scores[0] + scores[1]) / 2, atol=2e-5)
    decoder = session.decoder()
    texts = ([5, 6, 7], [8], [9, 10])
    first, then = decoder.feed(texts), decoder.feed([[30], [31], [32]])
    for row, text in enumerate(texts):
        whole = base.logits([*HARD[row % 2], *text, 30 + row])
        np.testing.assert_allclose([first[row], then[row]], whole[-2:], atol=2e-5)
    session.activate(None)
    np.testing.assert_array_equal(session.logits(IDS), plain)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_each_prompt_of_an_ensemble_learns_as_if_alone(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, checkpointing: bool
) -> None:
    settings = {"max_gradient_norm": 0.0, "gradient_checkpointing": checkpointing}
    own = {f"p{n}": rows_of(tiny, hard) for n, hard in enumerate(HARD)}
    know(monkeypatch, own, prompts, virtual=VirtualIds(3, 2))
    together = attached(tiny, settings)
    losses, scores = train(together, 3), together.score(batch_of())
    alone_losses, alone_scores = [], []
    for name, rows in own.items():
        know(monkeypatch, {name: rows}, prompts, virtual=VirtualIds(3, 1))
        alone = attached(tiny, settings)
        alone_losses.append(train(alone, 3))
        alone_scores.append(alone.score(batch_of()))
        np.testing.assert_allclose(together.tensors("m")[name], alone.tensors("m")[name], atol=1e-5)
        assert np.abs(alone.tensors("m")[name] - rows).max() > 1e-3
    np.testing.assert_allclose(losses, np.mean(alone_losses, axis=0), atol=1e-5)
    np.testing.assert_allclose(scores, np.mean(alone_scores, axis=0), atol=1e-4)


def test_virtual_tokens_count_in_the_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    know(monkeypatch, {"p0": np.ones((4, 64))}, prompts, virtual=VirtualIds(4, 1))
    session = attached(tiny_model(tmp_path, "gemma2"))  # its window is 64 tokens
    assert session.logits([5] * 60).shape[0] == 60
    for long in (lambda: session.logits([5] * 61), lambda: session.decoder().feed([[5] * 61])):
        with pytest.raises(Unsupported, match="sliding window of 64"):
            long()
