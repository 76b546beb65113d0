"""An adapter alone: as it is, published where it was a checkpoint, packed, and read back."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from finetune_local.adapter_format import read_adapter, write_adapter
from finetune_local.adapters import manage
from finetune_local.adapters.identity import write_identity
from finetune_local.export.pipeline import clean, export
from finetune_local.export.targets import adapter as target
from finetune_local.models.folder import ModelFolder
from finetune_local.spec.tuners import tuners
from finetune_local.system.errors import AdapterError, ModelError, VerificationFailed
from finetune_local.system.paths import Home
from made import made_adapter


@pytest.fixture
def adapter(tiny: Path, tmp_path: Path) -> Path:
    folder = made_adapter(tiny, tmp_path / "runs" / "我的 run" / "adapter", run="我的 run")
    (folder / "note.txt").write_text("private", "utf-8")
    return folder


def test_a_folder_is_the_adapter_without_the_users_note(adapter: Path, tmp_path: Path) -> None:
    done = export("adapter", None, adapter, tmp_path / "out 出")
    names = [file.name for file in done.files]
    assert names == ["README.md", "adapter_config.json", "adapter_model.safetensors", "finetune_local.json"]
    for name in names[1:]:
        assert (tmp_path / "out 出" / name).read_bytes() == (adapter / name).read_bytes()
    assert done.verification.passed and done.verification.tensors == len(read_adapter(adapter)[1])
    assert "PeftModel" in (tmp_path / "out 出" / "README.md").read_text("utf-8")
    export("adapter", None, adapter, tmp_path / "out 出", overwrite=True)


def test_a_zip_can_be_imported_again(adapter: Path, tmp_path: Path, home: Home) -> None:
    (tmp_path / "exports").mkdir()
    done = export("adapter", None, adapter, tmp_path / "exports", "zip")
    assert done.files == [tmp_path / "exports" / "我的 run-adapter.zip"] and done.verification.passed
    assert all(name.startswith("我的 run/") for name in zipfile.ZipFile(done.out).namelist())
    assert list((tmp_path / "exports").iterdir()) == done.files  # nothing beside it
    back = manage.bring_in(done.out, home, "back")
    np.testing.assert_equal(read_adapter(back.folder)[1], read_adapter(adapter)[1])


def test_what_cannot_be_merged_can_still_go_alone(tiny: Path, tmp_path: Path) -> None:
    model, family = ModelFolder.open(tiny), tuners()["bottleneck"]
    plan = family.plan("adapter", family.settings(), model.info())
    rng = np.random.default_rng(0)
    tensors = {n: rng.normal(0, 0.1, shape).astype(np.float32) for n, shape in family.shapes(plan).items()}
    write_adapter(tmp_path / "a", plan, tensors, model.name)
    write_identity(tmp_path / "a", model.identity(), None, {"method": "adapter"})
    with pytest.raises(AdapterError, match="cannot be merged"):
        export("merged", model, tmp_path / "a", tmp_path / "m", verification=False)
    assert export("adapter", None, tmp_path / "a", tmp_path / "out").verification.passed
    assert "PEFT has no such method" in (tmp_path / "out" / "README.md").read_text("utf-8")


def test_a_checkpoint_is_published(tiny: Path, tmp_path: Path) -> None:
    """PiSSA's start is subtracted in what is published; a checkpoint still has it beside."""
    model, family = ModelFolder.open(tiny), tuners()["low_rank"]
    plan = family.plan("pissa", family.settings(rank=2, start="pissa"), model.info())
    rng = np.random.default_rng(0)
    tensors = {n: rng.normal(0, 0.1, shape).astype(np.float32) for n, shape in family.shapes(plan).items()}
    write_adapter(tmp_path / "step-000010", plan, tensors, model.name)
    folded_plan, folded = family.fold(plan, tensors)
    assert folded.keys() != tensors.keys() or folded_plan != plan
    assert export("adapter", None, tmp_path / "step-000010", tmp_path / "out").verification.passed
    _, found = read_adapter(tmp_path / "out")
    np.testing.assert_equal(found, folded)


def test_another_reading_fails_verification(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(folder: Path) -> tuple[object, object]:
        plan, tensors = read_adapter(folder)
        name = next(iter(tensors))
        return plan, tensors if folder == adapter else {**tensors, name: tensors[name] + 1}

    monkeypatch.setattr(target, "read_adapter", damaged)
    with pytest.raises(VerificationFailed, match=r"does not read back as it was written\. It is kept in .*out\.failed"):
        export("adapter", None, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists() and (tmp_path / "out.failed").is_dir()


def test_a_bare_base_has_no_adapter_and_other_targets_want_a_base(adapter: Path, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="the base model alone has no adapter"):
        export("adapter", ModelFolder.open(tiny), None, tmp_path / "out")
    with pytest.raises(ModelError, match="needs a base model"):
        export("merged", None, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_a_killed_export_left_is_cleaned_up(tmp_path: Path) -> None:
    (tmp_path / "m.gguf.unchecked").write_bytes(b"x")
    (tmp_path / ".writing-m.gguf.unchecked").write_bytes(b"x")
    (tmp_path / ".writing-files-m.gguf.unchecked").mkdir()
    (tmp_path / "m.gguf").write_bytes(b"done")
    (tmp_path / "m.gguf.failed").write_bytes(b"to look at")
    clean(tmp_path / "m.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf", "m.gguf.failed"]
