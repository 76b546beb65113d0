"""What every backend promises of itself and of a session, whatever the method."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from conforming import ROWS, SFT, batch, gap_of, log_softmax, make_case, make_plan, make_spec
from finetune_local.backend import Backend, backends, choose
from finetune_local.spec.run import Precision, RunSpec
from finetune_local.spec.tuners import tuners
from finetune_local.system.errors import AdapterError, ModelError, SpecError
from tiny import FAMILIES, tiny_model

TEXT = list(ROWS[2])


def test_it_describes_itself(backend: Backend) -> None:
    devices = backend.devices()
    assert devices
    assert all(d.kind in ("cpu", "cuda", "metal") and d.memory_bytes > 0 and d.name for d in devices)
    assert backend.versions()
    assert all(note.endswith(".") or note for note in backend.notes())


def test_it_has_a_file_for_every_family(backend: Backend) -> None:
    assert backend.tuners() == frozenset(tuners())


def test_asking_it_imports_no_framework(backend: Backend) -> None:
    code = (
        "import sys; from finetune_local.backend import backends; b = backends()[sys.argv[1]];"
        "b.missing(), b.versions(), b.gaps(), b.tuners();"
        "print([m for m in ('torch', 'mlx.core', 'transformers', 'peft', 'mlx_lm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, backend.name], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_gaps_name_settings_and_say_why(backend: Backend) -> None:
    for gap in backend.gaps():
        table, name = gap.setting.split(".")
        kind = RunSpec.model_fields[table].annotation
        assert isinstance(kind, type)
        field = kind.model_fields[name]  # type: ignore[attr-defined]
        for value in filter(None, (gap.value, gap.instead)):
            assert value in get_args(field.annotation), f"{gap.setting} has no value {value}"
        assert len(gap.reason.split()) >= 4, gap
        assert gap.device in ("", "cpu", "cuda", "metal")


def test_choosing_one_by_name(backend: Backend) -> None:
    assert choose(backend.name)[0] is backend


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(SpecError, match="torch"):
        choose("toch")
    assert set(backends()) == {"torch", "mlx"}


@pytest.mark.parametrize("precision", get_args(Precision))
def test_each_precision_answers_nearly_as_fp32(backend: Backend, tiny: Path, precision: Precision) -> None:
    if gap := gap_of(backend, "model.precision", precision):
        pytest.skip(f"{backend.name} cannot hold {precision}: {gap.reason}")
    exact = log_softmax(backend.load(tiny, "fp32").logits(TEXT))
    found = log_softmax(backend.load(tiny, precision).logits(TEXT))
    divergence = (np.exp(exact) * (exact - found)).sum(-1).mean()
    assert divergence < {"fp32": 1e-9, "bf16": 1e-3, "8-bit": 5e-3, "4-bit": 0.2}[precision]
    if precision != "fp32":
        assert divergence > 1e-9, "the precision asked for was not used"


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_with_a_cache_equals_reading_at_once(backend: Backend, family: str, tmp_path: Path) -> None:
    session = backend.load(tiny_model(tmp_path / family, family), "fp32")
    whole = session.logits(TEXT)
    decoder = session.decoder()
    found = [decoder.feed([TEXT[:4]])[0], *(decoder.feed([[token]])[0] for token in TEXT[4:])]
    np.testing.assert_allclose(found, whole[3:], atol=1e-3)


def test_rows_of_a_decoder_do_not_see_each_other(backend: Backend, tiny: Path) -> None:
    session = backend.load(tiny, "fp32")
    prompts = [list(row[:4]) if i else list(row) for i, row in enumerate(ROWS)]
    decoder = session.decoder()
    first, then = decoder.feed(prompts), decoder.feed([[50], [51], [52]])
    for i, prompt in enumerate(prompts):
        np.testing.assert_allclose(first[i], session.logits(prompt)[-1], atol=1e-3)
        np.testing.assert_allclose(then[i], session.logits([*prompt, 50 + i])[-1], atol=1e-3)


def test_dropout_is_seeded_and_only_for_training(backend: Backend, tiny: Path) -> None:
    spec = make_spec("lora", "fp32")
    settings = spec.method.settings.model_copy(update={"dropout": 0.5})
    spec = spec.model_copy(update={"method": spec.method.model_copy(update={"settings": settings})})
    curves = []
    for shift in (0, 0, 100):
        session = backend.load(tiny, "fp32")
        session.attach("a", make_plan(spec, tiny), 1)
        session.prepare("a", spec.training)
        losses = []
        for step in range(4):
            session.seed(step + shift)
            losses.append(session.step([batch()], SFT, 1e-2).loss)
        np.testing.assert_array_equal(session.score(batch()), session.score(batch()))
        curves.append(losses)
    assert curves[0] == curves[1]
    assert curves[0] != curves[2]


def test_padding_is_not_seen(backend: Backend, tiny: Path) -> None:
    session = backend.load(tiny, "fp32")
    alone = np.concatenate([session.score(batch([row])) for row in ROWS])
    np.testing.assert_allclose(session.score(batch()), alone, atol=1e-5)
    other = batch()
    other.ids[other.ids == 0] = 77
    np.testing.assert_allclose(session.score(other), alone, atol=1e-5)


def test_memory_is_counted(backend: Backend, tiny: Path) -> None:
    used = backend.load(tiny, "fp32").memory()
    assert 0 < used.current_bytes <= used.peak_bytes


def test_tensors_that_do_not_fit_are_refused(backend: Backend, tiny: Path) -> None:
    case = make_case(backend, "lora", tiny)
    case.attach()
    tensors = case.session.tensors("a")
    name = sorted(tensors)[0]
    lacking = {k: v for k, v in tensors.items() if k != name}
    for wrong in (lacking, {**tensors, "extra": tensors[name]}, {**tensors, name: tensors[name][:, :-1]}):
        with pytest.raises(AdapterError):
            case.session.attach("wrong", case.plan, 1, wrong)
    assert case.session.adapters() == ["a"]


def test_a_module_the_base_lacks_is_refused(backend: Backend, tiny: Path, tmp_path: Path) -> None:
    deeper = tiny_model(tmp_path / "deeper", layers=3)
    session = backend.load(tiny, "fp32")
    with pytest.raises(ModelError, match=r"layers\.2"):
        session.attach("a", make_plan(make_spec("lora"), deeper), 1)


def test_folders_that_are_no_model_are_refused(backend: Backend, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        backend.load(tmp_path / "nothing", "fp32")
    cut = tmp_path / "cut short"
    shutil.copytree(tiny, cut)
    weights = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ModelError):
        backend.load(cut, "fp32")
