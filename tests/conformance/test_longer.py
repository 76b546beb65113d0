"""A longer context from the setting to the export: both backends compute it alike, and whatever opens the adapter knows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_local.adapters.library import rope_factor_of
from finetune_local.backend import Backend, backends
from finetune_local.export.pipeline import export
from finetune_local.export.verification import receivers
from finetune_local.inference.engine import open_chat
from finetune_local.models.folder import ModelFolder
from finetune_local.models.resolve import resolve_for
from finetune_local.spec.numerics.rope import rope
from finetune_local.spec.run import ModelSettings, parse_spec
from finetune_local.system.errors import AdapterError, SpecError, Unsupported
from finetune_local.system.paths import Home
from finetune_local.training import check, setup
from finetune_local.training.run_folder import runs
from receiving import answered_here
from tiny import tiny_model
from training import ready_of, result, train

LONG = np.random.default_rng(5).integers(3, 380, 700).tolist()


def begin(
    home: Home, folder: Path, data: Path, backend: Backend, name: str, model: dict[str, Any], **more: Any
) -> runs.Run:
    training = {"max_steps": 4, "batch_size": 2, "learning_rate": 1e-2, "sample_rows": 0, "checkpoint_every": 2}
    tables = {
        "name": name,
        "backend": backend.name,
        "model": {"id": str(folder), "precision": "fp32", **model},
        "data": {"files": [str(data)], "validation": 0.2, "max_length": 600, **more},
        "method": {"key": "longlora", "rank": 4},
        "training": training,
    }
    spec, _ = check.check_before_loading(parse_spec(tables, "test"), home, lambda *_: None)
    return runs.create(home, spec)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_both_backends_stretch_alike_and_as_a_config_would(tmp_path: Path, family: str) -> None:
    if lacking := [b.name for b in backends().values() if b.missing()]:
        pytest.skip(f"parity needs both backends; missing: {', '.join(lacking)}")
    folder = tiny_model(tmp_path / "base", family)
    written = tiny_model(tmp_path / "written", family)
    config = ModelFolder.open(folder).stretched(2.5).config
    (written / "config.json").write_text(json.dumps(config), "utf-8")
    for backend in backends().values():
        plain = backend.load(folder, "fp32").logits(LONG)
        found = backend.load(folder, "fp32", rope_factor=2.5).logits(LONG)
        np.testing.assert_allclose(found, backend.load(written, "fp32").logits(LONG), atol=1e-5)
        assert np.abs(found - plain).max() > 0.1
    one, other = (b.load(folder, "fp32", rope_factor=2.5).logits(LONG) for b in backends().values())
    np.testing.assert_allclose(one, other, atol=1e-4)


def test_a_class_that_leaves_scaling_out_is_refused(tmp_path: Path, backend: Backend) -> None:
    folder = tiny_model(tmp_path, "gemma")
    if backend.name == "mlx":
        with pytest.raises(Unsupported, match="does not stretch positions"):
            backend.load(folder, "fp32", rope_factor=2.0)
    else:
        assert np.isfinite(backend.load(folder, "fp32", rope_factor=2.0).logits(LONG)).all()


def test_the_settings(tiny: Path, home: Home) -> None:
    def model(**given: Any) -> ModelFolder:
        return resolve_for(ModelSettings.model_validate({"id": str(tiny), **given}), home, lambda *_: None)

    assert model().context_length == 512 and model().rope_factor == 1
    assert model(rope_factor=4).context_length == 2048
    longer = model(context=1000)
    assert longer.context_length == 1000 and longer.rope_factor == pytest.approx(1000 / 512)
    assert longer.identity() != model().identity()
    with pytest.raises(SpecError, match="already reads 512 tokens"):
        model(context=256)
    with pytest.raises(SpecError, match="only one of them"):
        model(context=1024, rope_factor=2)


def test_a_run_its_chat_and_its_exports(
    home: Home, tiny: Path, data: Path, backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receivers, "run_receiver", answered_here)
    with pytest.raises(SpecError, match="reads at most 512"):
        list(setup.make_ready(begin(home, tiny, data, backend, "short", {}), home))
    run = begin(home, tiny, data, backend, "long 长", {"context": 1024})
    seen = iter(range(100))
    train(run, home, stop=lambda: next(seen) >= 2)
    ready = ready_of(run, home)
    assert ready.model.context_length == 1024 and ready.spec.training.attention_group is not None
    assert 0 < ready.state.step < 4
    train(run, home)
    assert rope_factor_of(run.adapter) == 2.0

    opened = open_chat(home, None, [str(run.adapter)], backend=backend.name, precision="fp32")
    assert opened.model.context_length == 1024
    trained = ready_of(run, home).session.logits(LONG)
    np.testing.assert_allclose(opened.session.logits(LONG), trained, atol=1e-5)
    bare = open_chat(home, str(tiny), [], backend=backend.name, precision="fp32")
    assert bare.model.context_length == 512
    with pytest.raises(AdapterError, match=r"stretched by 2.*start with this adapter alone"):
        bare.load(str(run.adapter))

    base = ModelFolder.open(tiny).stretched(rope_factor_of(run.adapter))
    done = export("merged", base, run.adapter, tmp_path / "merged out", "float32", backend=backend.name)
    assert done.verification.passed
    merged = ModelFolder.open(tmp_path / "merged out")
    assert merged.context_length == 1024 and rope(merged.config).values["factor"] == 2.0
    np.testing.assert_allclose(backend.load(merged.path, "fp32").logits(LONG), trained, atol=1e-4)
    with pytest.raises(AdapterError, match="stretched by 2"):
        export("merged", ModelFolder.open(tiny), run.adapter, tmp_path / "other", "float32", backend=backend.name)

    pytest.importorskip("gguf")
    from gguf import GGUFReader

    done = export("gguf", base, run.adapter, tmp_path / "out.gguf", "f32", backend=backend.name, verification=False)
    fields = GGUFReader(done.files[0]).fields
    assert fields["llama.rope.scaling.factor"].contents() == 2.0
    assert fields["llama.context_length"].contents() == 1024
    assert result(run)
