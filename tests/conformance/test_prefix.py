"""Prefix tuning on each backend: masks, windows, caches and positions, the folded form, and what is refused before loading."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from conforming import SFT, batch, gradients_of, log_softmax, make_plan
from conftest import USABLE
from finetune_local.adapter_format import read_tensors
from finetune_local.backend import Backend, Session, backends
from finetune_local.models.folder import ModelFolder
from finetune_local.spec.batch import Batch
from finetune_local.spec.plan import AdapterPlan, BaseInfo, WeightInfo
from finetune_local.spec.run import TrainingSettings, parse_spec
from finetune_local.spec.tuners import tuner_of, tuners
from finetune_local.spec.tuners.prefix import ROWS, PrefixSettings
from finetune_local.system.errors import AdapterError, ModelError, SpecError
from finetune_local.training.check import plan_for
from tiny import FAMILIES, MORE_FAMILIES, tiny_model

N = 6
WINDOW = 64
"""Of the tiny Gemma 2 and 3, in every second layer."""

TEXT = np.random.default_rng(3).integers(3, 380, 90).tolist()
SHORT = TEXT[:9]


def plan_of(folder: Path, **settings: Any) -> AdapterPlan:
    given = {"key": "prefix", "prefix_length": N, "prefix_projection": False, "prefix_width": 16, **settings}
    return make_plan(parse_spec({"method": given}, "test"), folder)


def rows_of(plan: AdapterPlan, spread: float = 1.0) -> dict[str, np.ndarray]:
    shape = tuner_of(plan).shapes(plan)[ROWS]
    return {ROWS: (np.random.default_rng(8).normal(size=shape) * spread).astype(np.float32)}


def with_prefix(backend: Backend, folder: Path, precision: Any = "fp32", **settings: Any) -> Session:
    session, plan = backend.load(folder, precision, "cpu"), plan_of(folder, **settings)
    session.attach("a", plan, 1, rows_of(plan) if ROWS in tuner_of(plan).shapes(plan) else None)
    return session


@pytest.mark.skipif(len(USABLE) < 2, reason="needs two backends")
@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES])
def test_both_backends_answer_alike_also_past_a_window(family: str, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / family, family, seed=3)
    length = WINDOW - 2 if family == "gemma2" else len(TEXT)  # MLX's class of Gemma 2 knows no window
    one, other = (with_prefix(backends()[name], folder) for name in ("torch", "mlx"))
    found = one.logits(TEXT[:length])
    np.testing.assert_allclose(other.logits(TEXT[:length]), found, atol=1e-4)
    one.activate(None)
    assert np.abs(one.logits(TEXT[:length]) - found).max() > 0.1


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_later_token_changes_nothing_before_it(backend: Backend, family: str, tmp_path: Path) -> None:
    session = with_prefix(backend, tiny_model(tmp_path / family, family))
    other = [*TEXT[:70], *(5 for _ in TEXT[70:])]
    np.testing.assert_allclose(session.logits(other)[:70], session.logits(TEXT)[:70], atol=1e-5)


@pytest.mark.parametrize("row", range(0, N, 2))
def test_every_token_sees_every_row_of_the_prefix(backend: Backend, row: int, tiny: Path) -> None:
    plan = plan_of(tiny)
    tensors, session = rows_of(plan), backend.load(tiny, "fp32")
    session.attach("a", plan, 1, tensors)
    before = session.logits(SHORT)
    tensors[ROWS][row] += 1.0
    session.attach("b", plan, 1, tensors)
    assert np.abs(session.logits(SHORT) - before).max(axis=-1).min() > 1e-3


def test_a_window_slides_past_the_prefix(backend: Backend, tmp_path: Path) -> None:
    """A layer that slides sees a row of the prefix while it is less than a window away, and then no more."""
    folder = tiny_model(tmp_path / "gemma3_text", "gemma3_text")
    weights = read_tensors(folder / "model.safetensors")
    weights["model.layers.1.self_attn.o_proj.weight"][:] = 0  # the layer that sees all would hand on what others saw
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    plan = plan_of(folder)
    tensors, session = rows_of(plan), backend.load(folder, "fp32")
    session.attach("a", plan, 1, tensors)
    before = session.logits(TEXT)
    tensors[ROWS][2] += 1.0
    session.attach("b", plan, 1, tensors)
    moved = np.abs(session.logits(TEXT) - before).max(axis=-1) > 1e-6
    last = WINDOW + 2 - N  # token t has position N + t and sees position 2 while N + t − 2 < WINDOW
    np.testing.assert_array_equal(np.flatnonzero(moved), np.arange(last))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
def test_a_decoder_says_what_the_whole_text_says(backend: Backend, family: str, tmp_path: Path) -> None:
    """Alone and beside shorter texts, which are padded, and past the window."""
    session = with_prefix(backend, tiny_model(tmp_path / family, family))
    whole, short = session.logits(TEXT), session.logits(SHORT)
    decoder = session.decoder()
    for end, found in ((58, decoder.feed([TEXT[:58]])), (60, decoder.feed([TEXT[58:60]]))):
        np.testing.assert_allclose(found[0], whole[end - 1], atol=1e-4)
    for place in range(60, 72):
        np.testing.assert_allclose(decoder.feed([[TEXT[place]]])[0], whole[place], atol=1e-4)
    several = session.decoder()
    found = several.feed([TEXT[:58], SHORT[:1]])
    for step in range(len(SHORT) - 1):
        np.testing.assert_allclose(found, [whole[57 + step], short[step]], atol=1e-4)
        found = several.feed([[TEXT[58 + step]], [SHORT[1 + step]]])


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_rows_of_other_lengths_change_no_score(backend: Backend, family: str, tmp_path: Path) -> None:
    session = with_prefix(backend, tiny_model(tmp_path / family, family))
    rows = batch([TEXT, SHORT, TEXT[5:40]])
    expected = [
        log_softmax(session.logits(row[:length].tolist()))[place - 1, row[place]]
        for row, length, mask in zip(rows.ids, rows.lengths, rows.mask, strict=True)
        for place in np.flatnonzero(mask)
    ]
    np.testing.assert_allclose(session.score(rows), expected, atol=1e-4)


@pytest.mark.parametrize("projection", [False, True])
def test_checkpointing_changes_no_gradient(backend: Backend, projection: bool, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "gemma3_text", "gemma3_text")
    found = []
    for wanted in (False, True):
        session = with_prefix(backend, folder, prefix_projection=projection)
        session.prepare("a", TrainingSettings(gradient_checkpointing=wanted))
        found.append(gradients_of(session, batch([TEXT, SHORT])))
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert np.abs(gradient).max() > 0
        np.testing.assert_allclose(found[1][name], gradient, atol=1e-6, err_msg=name)


def test_the_folded_form_computes_the_same_and_trains_on(backend: Backend, tiny: Path) -> None:
    session = with_prefix(backend, tiny, prefix_projection=True)
    session.prepare("a", TrainingSettings())
    losses = [session.step([batch()], SFT, 1e-2).loss for _ in range(5)]
    plan = plan_of(tiny, prefix_projection=True)
    folded, rows = tuner_of(plan).fold(plan, session.tensors("a"))
    assert folded == plan_of(tiny) and rows[ROWS].shape == (N, 2 * 2 * 32)
    trained = session.logits(SHORT)
    session.attach("folded", folded, 1, rows)
    np.testing.assert_allclose(session.logits(SHORT), trained, atol=1e-5)
    session.prepare("folded", TrainingSettings())
    more = [session.step([batch()], SFT, 2e-2).loss for _ in range(8)]
    assert more[0] < losses[-1] + 1e-4 and more[-1] < more[0] - 0.1


def test_prefix_and_lora_swap_exactly_in_one_session(backend: Backend, tiny: Path) -> None:
    session = with_prefix(backend, tiny)
    lora = make_plan(parse_spec({"method": {"key": "lora", "rank": 4}}, "test"), tiny)
    session.attach("lora", lora, 1)
    session.prepare("lora", TrainingSettings())
    session.step([batch()], SFT, 1e-2)
    seen: dict[str | None, np.ndarray] = {}
    for name in ("a", "lora", None):
        session.activate(name)
        seen[name] = session.logits(SHORT)
    assert min(np.abs(seen["a"] - seen[other]).max() for other in ("lora", None)) > 0.1
    for name in ("lora", "a", None, "a"):
        session.activate(name)
        np.testing.assert_array_equal(session.logits(SHORT), seen[name])
    session.detach("a")
    np.testing.assert_array_equal(session.logits(SHORT), seen[None])


def test_it_learns_on_a_quantised_base(backend: Backend, tiny: Path) -> None:
    session = with_prefix(backend, tiny, "4-bit", prefix_projection=True)
    session.prepare("a", TrainingSettings())
    losses = [session.step([batch()], SFT, 1e-2).loss for _ in range(12)]
    assert losses[-1] < 0.8 * losses[0], losses


def test_bf16_follows_fp32(backend: Backend, tiny: Path) -> None:
    rows: list[Batch] = [batch([TEXT, SHORT])]
    curves = []
    for precision in ("fp32", "bf16"):
        session = with_prefix(backend, tiny, precision)
        session.prepare("a", TrainingSettings())
        curves.append([session.step(rows, SFT, 1e-2).loss for _ in range(5)])
    np.testing.assert_allclose(curves[1], curves[0], rtol=0.02)


def test_an_adapter_of_another_base_is_refused(backend: Backend, tiny: Path, tmp_path: Path) -> None:
    deep = plan_of(tiny_model(tmp_path / "deep", layers=3))
    wide = plan_of(tiny)
    wide = replace(wide, targets=tuple(replace(t, out_features=32) for t in wide.targets))
    session = backend.load(tiny, "fp32")
    with pytest.raises(AdapterError, match="for 3 layers, but this model has 2"):
        session.attach("deep", deep, 1, rows_of(deep))
    with pytest.raises(ModelError, match="32 wide in the base, but the prefix was made for 64"):
        session.attach("wide", wide, 1, rows_of(wide))
    assert session.adapters() == []


def test_a_prefix_takes_its_place_in_the_context(tiny: Path) -> None:
    model = ModelFolder.open(tiny)
    spec = parse_spec({"method": {"key": "prefix", "prefix_length": 504}}, "test")
    assert tuner_of(plan_for(spec, model)).virtual_tokens(plan_for(spec, model)) == 504
    spec = parse_spec({"method": {"key": "prefix", "prefix_length": 505}}, "test")
    with pytest.raises(SpecError, match=r"uses 505 positions .* reads at most 512.* Lower --prefix-length"):
        plan_for(spec, model)


def _weights(*names: str, height: int = 32) -> dict[str, WeightInfo]:
    return {name: WeightInfo((height, 64), "F32") for name in names}


@pytest.mark.parametrize(
    ("base", "said"),
    [
        (BaseInfo(_weights("h.0.attn.c_attn.weight"), model_type="gpt2"), r"0 of the 1 blocks of this model \('gpt2'\)"),
        (
            BaseInfo(_weights("layers.0.self_attn.k_proj.weight", "layers.1.mixer.in_proj.weight"), kv_heads=2),
            "only 1 of the 2 blocks",
        ),
        (
            BaseInfo(
                _weights("layers.0.attn.k_proj.weight") | _weights("layers.1.attn.k_proj.weight", height=48), kv_heads=2
            ),
            r"different widths in different layers \(32, 48\)",
        ),
        (BaseInfo(_weights("layers.0.attn.k_proj.weight")), "num_key_value_heads"),
    ],
)  # fmt: skip
def test_a_base_without_room_for_a_prefix_is_refused_before_loading(base: BaseInfo, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        tuners()["prefix"].plan("prefix", PrefixSettings(), base)


def test_fused_projections_take_their_sizes_from_the_config() -> None:
    base = BaseInfo(_weights("layers.0.self_attn.qkv_proj.weight", height=96), kv_heads=2, head_dim=16)
    (target,) = tuners()["prefix"].plan("prefix", PrefixSettings(), base).targets
    assert (target.module, target.in_features, target.out_features) == ("layers.0.self_attn", 2, 16)


def test_it_says_why_it_cannot_be_merged(tiny: Path) -> None:
    plan = plan_of(tiny)
    assert "cannot be merged into the base's weights" in (tuner_of(plan).merge_refusal(plan) or "")
