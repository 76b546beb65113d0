"""The MLX backend against plain numpy, and against itself cut up in other ways."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conforming import log_softmax
from finetune_local.backend import Batch, Session, backends
from finetune_local.errors import AdapterError, ModelError, Unsupported
from finetune_local.spec.families.low_rank import PREFIX
from finetune_local.spec.objectives import objectives
from finetune_local.spec.run import TrainingSettings
from tasks import batch_of, pieces, plan_of
from tiny import FAMILIES, tiny_model

MLX = backends()["mlx"]
if reason := MLX.missing():
    pytest.skip(reason, allow_module_level=True)

SFT = objectives()["sft"]
IDS = np.random.default_rng(5).integers(3, 380, 40).tolist()
RATE = 5e-3


def ready(
    folder: Path, method: str = "lora", precision: Any = "fp32", training: dict[str, Any] | None = None, **settings: Any
) -> Session:
    """A session with the adapter "a", ready to train."""
    session = MLX.load(folder, precision, "cpu")
    session.attach("a", plan_of(folder, method, **settings), seed=7)
    session.prepare("a", TrainingSettings(**(training or {})))
    return session


def train(session: Session, steps: int, first: int = 0) -> list[float]:
    losses = []
    for step in range(first, first + steps):
        session.seed(step)
        losses.append(session.step([batch_of(seed=step % 4), batch_of(2, 16, seed=9)], SFT, RATE).loss)
    return losses


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def far(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    assert one.keys() == other.keys()
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)


def expected_scores(session: Session, batch: Batch) -> np.ndarray:
    """Row by row, from the whole model's logits, in float64."""
    found = []
    for ids, length, mask in zip(batch.ids, batch.lengths, batch.mask, strict=True):
        logprobs = log_softmax(session.logits(ids[:length].tolist()))
        found += [logprobs[t - 1, ids[t]] for t in np.nonzero(mask)[0]]
    return np.array(found)


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
    second.attach("a", plan_of(tiny, method, **settings), 0, first.tensors("a"))
    second.prepare("a", TrainingSettings(weight_decay=0.1))
    second.restore_optimizer(first.optimizer_state())
    assert train(second, 3, first=3) == losses[3:]
    assert_same(second.tensors("a"), whole.tensors("a"))
    assert_same(second.optimizer_state(), whole.optimizer_state())  # type: ignore[arg-type]


def test_a_state_of_another_kind_is_refused(tiny: Path) -> None:
    session = ready(tiny)
    state = session.optimizer_state()
    with pytest.raises(AdapterError, match="another kind"):
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
    assert not any(type(m).__name__ == "Adapted" for m in session.model.module.modules())  # type: ignore[attr-defined]
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
    layer.active.key = mx.random.key(3)
    dropped = np.array(layer.active.dropped(mx.array(x)))
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

    from finetune_local_backends.mlx import load

    module = nn.Module()
    module.layers = [nn.Module()]
    module.layers[0].small, module.layers[0].odd = nn.Linear(96, 8), nn.Linear(40, 8)
    with pytest.raises(Unsupported, match=r"layers\.0\.odd has 40 inputs"):
        load._quantise(module, 4, MLX.devices()[-1])
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
    with pytest.raises(Unsupported, match="fp32 or bf16"):
        ready(tiny, "full", "4-bit")


class _NotFinite:
    key = title = "nan"

    def loss(self, ops: Any, logprobs: Any, batch: Batch, total: float) -> Any:
        return ops.sum(logprobs) * float("nan")


def test_a_loss_that_is_not_finite_is_told_and_not_applied(tiny: Path) -> None:
    session = ready(tiny)
    train(session, 2)
    tensors, state = session.tensors("a"), session.optimizer_state()
    result = session.step([batch_of()], _NotFinite(), RATE)
    assert np.isnan(result.loss)
    assert_same(session.tensors("a"), tensors)
    assert_same(session.optimizer_state(), state)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_rows_decoded_together_equal_each_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    """Prompts of very different lengths, read in chunks, some longer than the sliding window (64 in gemma3_text)."""
    session = ready(tiny_model(tmp_path, family))
    train(session, 3)
    rng = np.random.default_rng(1)
    prompts = [rng.integers(3, 380, n).tolist() for n in (5, 90, 33, 1)]
    whole = [session.logits(p)[-1] for p in prompts]
    monkeypatch.setattr("finetune_local_backends.mlx.decoder._CHUNK", 16)

    def greedy(rows: Sequence[Sequence[int]]) -> tuple[list[np.ndarray], list[list[int]]]:
        decoder = session.decoder()
        seen = [decoder.feed(rows)]
        texts: list[list[int]] = [[] for _ in rows]
        for _ in range(12):
            for text, logits in zip(texts, seen[-1], strict=True):
                text.append(int(logits.argmax()))
            seen.append(decoder.feed([text[-1:] for text in texts]))
        return seen, texts

    together, texts = greedy(prompts)
    assert together[0].dtype == np.float32
    np.testing.assert_allclose(together[0], whole, atol=2e-5)
    for number, prompt in enumerate(prompts):
        alone, text = greedy([prompt])
        assert text[0] == texts[number]
        np.testing.assert_allclose([x[0] for x in alone], [x[number] for x in together], atol=5e-5)
        np.testing.assert_allclose(alone[-1][0], session.logits(prompt + text[0])[-1], atol=5e-5)


def test_a_text_goes_on_under_the_adapter_it_began_with(tiny: Path) -> None:
    session = ready(tiny)
    train(session, 3)
    steady, switched = session.decoder(), session.decoder()
    steady.feed([IDS])
    switched.feed([IDS])
    session.activate(None)
    np.testing.assert_array_equal(switched.feed([[9, 10]]), steady.feed([[9, 10]]))
    assert session.adapters() == ["a"]
    with pytest.raises(ValueError, match="equally many"):
        steady.feed([[1], [2]])


def edit(folder: Path, **fields: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **fields}), "utf-8")
    return folder


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"auto_map": {"AutoModel": "code.Model"}}, "code of its own"),
        ({"quantization_config": {"quant_method": "gptq"}}, "already quantised"),
        ({"num_hidden_layers": 3}, "do not fit its config.json"),
    ],
)
def test_folders_that_cannot_be_used_are_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        MLX.load(edit(tiny_model(tmp_path), **fields), "fp32", "cpu")


@pytest.mark.parametrize("family", ["no_such_family", "../llama", "olmo3"])
def test_families_that_were_not_checked_are_refused(tmp_path: Path, family: str) -> None:
    with pytest.raises(Unsupported, match=r"have not been proven.*llama, mistral"):
        MLX.load(edit(tiny_model(tmp_path), model_type=family), "fp32", "cpu")


def test_an_activation_that_mlx_lm_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="asks for relu"):
        MLX.load(edit(tiny_model(tmp_path), hidden_act="relu"), "fp32", "cpu")


def test_broken_and_missing_files_are_told(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "模型 [1]")
    (folder / "model.safetensors").write_bytes(b"rubbish")
    with pytest.raises(ModelError, match=r"model\.safetensors: cannot be read"):
        MLX.load(folder, "fp32", "cpu")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no \.safetensors files"):
        MLX.load(folder, "fp32", "cpu")
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        MLX.load(folder, "fp32", "cpu")


def test_shards_in_a_folder_of_any_name_are_read_and_left_as_they_were(tmp_path: Path, tiny: Path) -> None:
    folder = tiny_model(tmp_path / "模型 [1] *", shards=3)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    sharded = MLX.load(folder, "fp32", "cpu").logits(IDS)
    np.testing.assert_array_equal(sharded, MLX.load(tiny, "fp32", "cpu").logits(IDS))
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_texts_beyond_a_window_that_mlx_lm_ignores_are_refused(tmp_path: Path) -> None:
    session = ready(tiny_model(tmp_path, "gemma2"))  # its window is 64 tokens
    assert session.logits([5] * 64).shape[0] == 64
    for long in (
        lambda: session.logits([5] * 65),
        lambda: session.decoder().feed([[5] * 65]),
        lambda: session.step([batch_of(2, 70)], SFT, RATE),
    ):
        with pytest.raises(Unsupported, match="sliding window of 64"):
            long()


def test_adapters_that_do_not_fit_are_refused(tmp_path: Path, tiny: Path) -> None:
    session = MLX.load(tiny, "fp32", "cpu")
    plan = plan_of(tiny)
    session.attach("a", plan, 0)
    good = session.tensors("a")
    name = next(iter(good))
    for tensors in (
        {k: v for k, v in good.items() if k != name},
        {**good, "more": good[name]},
        {**good, name: good[name][:, :-1]},
    ):
        with pytest.raises(AdapterError, match="does not fit"):
            session.attach("b", plan, 0, tensors)
    with pytest.raises(AdapterError, match="in memory already"):
        session.attach("a", plan, 0)
    other = tiny_model(tmp_path, layers=3)
    with pytest.raises(ModelError, match=r"no linear layer called model\.layers\.2"):
        session.attach("b", plan_of(other), 0)
    assert session.adapters() == ["a"]


@pytest.mark.parametrize("value", ["adamw-8bit", "paged-adamw", "paged-adamw-8bit"])
def test_gaps_are_refused_with_their_reason(tiny: Path, value: str) -> None:
    gap = next(g for g in MLX.gaps() if g.value == value)
    with pytest.raises(Unsupported, match="MLX has no") as raised:
        ready(tiny, training={"optimizer": value})
    assert gap.reason in str(raised.value)
    assert gap.instead == "adamw"


def in_a_process(code: str, **environment: str) -> str:
    paths = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": paths, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_looking_at_the_backend_imports_nothing_heavy() -> None:
    code = (
        "import sys; from finetune_local.backend import backends; b = backends()['mlx']\n"
        "b.missing(), b.versions(), b.devices(), b.gaps(), b.notes(), b.families()\n"
        "print([m for m in ('mlx', 'mlx_lm', 'transformers', 'torch') if m in sys.modules])"
    )
    assert in_a_process(code) == "[]"


def test_importing_mlx_lm_does_not_lower_the_limit_of_open_files() -> None:
    code = (
        "import resource; before = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "from finetune_local_backends.mlx.device import start; start('cpu')\n"
        "print(before == resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    assert in_a_process(code) == "True"


MULTIPLY = (
    "from finetune_local_backends.mlx import BACKEND, blas; blas.prepare()\n"
    "import mlx.core as mx, numpy as np\n"
    "a = np.random.default_rng(0).normal(size=(2, 40, 30)).astype(np.float32)\n"
    "c = (a[0] + 1j * a[1]).astype(np.complex64)\n"
    "for x in (a[0], c):\n"
    "    assert np.allclose(np.array(mx.array(x) @ mx.array(x.T.copy())), x @ x.T, atol=1e-3)\n"
    "print(blas.calls() > 0, any('slower' in n for n in BACKEND.notes()))"
)


@pytest.mark.skipif(sys.platform != "linux", reason="only MLX's Linux build has the slow BLAS")
def test_products_go_through_the_fast_blas(tmp_path: Path) -> None:
    from finetune_local_backends.mlx import blas

    if blas.obstacle():
        pytest.skip(str(blas.obstacle()))
    home = {"FINETUNE_LOCAL_HOME": str(tmp_path / "家 home")}
    assert in_a_process(MULTIPLY, **home) == "True False"
    assert len(list((tmp_path / "家 home" / "cache").iterdir())) == 1
    assert in_a_process(MULTIPLY, **home, PATH="", CC="") == "True False"  # made already: no compiler is needed


@pytest.mark.skipif(sys.platform != "linux", reason="only MLX's Linux build has the slow BLAS")
def test_without_a_compiler_it_goes_on_and_says_so(tmp_path: Path) -> None:
    assert in_a_process(MULTIPLY, FINETUNE_LOCAL_HOME=str(tmp_path), PATH="", CC="") == "False True"
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    assert in_a_process(MULTIPLY, FINETUNE_LOCAL_HOME=str(tmp_path), CC=str(broken)).startswith("False")


OUT_OF_MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np
from finetune_local.backend import Batch
from finetune_local.errors import OutOfMemory
from test_mlx_reference import SFT, batch_of, ready, train
session = ready(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(FOLDER))
train(session, 2)
before = session.tensors("a"), session.optimizer_state()
held = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (held + (256 << 20), -1))
big = batch_of(64, 2048)
try:
    session.step([batch_of(), big], SFT, 1e-2)
except OutOfMemory as error:
    print("told", "not enough memory" in str(error))
after = session.tensors("a"), session.optimizer_state()
print(all(np.array_equal(b[k], a[k]) for b, a in zip(before, after) for k in b))
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
print(session.step([batch_of()], SFT, 1e-2).loss < 8)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory is set Linux's way")
def test_a_batch_that_does_not_fit_leaves_everything_as_it_was(tiny: Path) -> None:
    code = OUT_OF_MEMORY.replace("FOLDER", repr(str(tiny)))
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert done.stdout.split("\n")[:3] == ["told True", "True", "True"], done.stderr


def test_memory_in_use_is_told(tiny: Path) -> None:
    use = ready(tiny).memory()
    assert 10 << 20 < use.current_bytes <= use.peak_bytes
