"""An export from start to verdict, without verification: names, places, and what is refused."""

from pathlib import Path

import pytest

from finetune_local.backend import Device
from finetune_local.export.pipeline import export
from finetune_local.export.targets import targets
from finetune_local.export.verification import verify
from finetune_local.export.verification.verify import Verification
from finetune_local.models.folder import ModelFolder
from finetune_local.system.errors import ModelError, VerificationFailed
from made import made_adapter
from tiny import tiny_model


def test_targets_are_found_by_listing() -> None:
    assert list(targets()) == ["gguf", "ollama", "merged", "adapter"]
    assert all(target.key == key and target.quants and target.title for key, target in targets().items())


def test_unknown_targets_and_formats_are_refused_with_what_there_is(tiny: Path, tmp_path: Path) -> None:
    model = ModelFolder.open(tiny)
    with pytest.raises(ModelError, match=r"no export 'gguff'.*gguf"):
        export("gguff", model, None, tmp_path / "x", verification=False)
    with pytest.raises(ModelError, match="--to gguf supports f16, bf16, f32, q8_0, q6_k, q5_k_m, q4_k_m"):
        export("gguf", model, None, tmp_path / "x", "float16", verification=False)
    assert not list(tmp_path.iterdir())


def test_verification_takes_the_precision_that_fits_where_the_base_is_loaded(tiny: Path) -> None:
    model = ModelFolder.open(tiny)
    cards = [Device("cuda:0", "cuda", "card", factor * model.parameters) for factor in (80, 4)]
    assert [verify._precision(model, card) for card in cards] == ["fp32", "bf16"]
    assert verify._precision(model, Device("cpu", "cpu", "cpu", 1)) == "fp32"


def test_what_is_there_is_not_replaced_unasked(tiny: Path, tmp_path: Path) -> None:
    model, out = ModelFolder.open(tiny), tmp_path / "out"
    assert export("merged", model, None, out, verification=False).verification.passed is None
    with pytest.raises(ModelError, match="--overwrite"):
        export("merged", model, None, out, verification=False)
    (out / "stale.txt").write_text("x", "utf-8")
    export("merged", model, None, out, verification=False, overwrite=True)
    assert not (out / "stale.txt").exists()
    file = tmp_path / "a.gguf"
    file.write_bytes(b"precious")
    with pytest.raises(ModelError, match="--overwrite"):
        export("gguf", model, None, file, verification=False)
    assert file.read_bytes() == b"precious"
    export("gguf", model, None, file, verification=False, overwrite=True)
    assert file.read_bytes()[:4] == b"GGUF"


def test_a_folder_that_is_no_model_or_a_source_is_never_replaced(tiny: Path, tmp_path: Path) -> None:
    model = ModelFolder.open(tiny)
    documents = tmp_path / "documents"
    documents.mkdir()
    (documents / "thesis.txt").write_text("years", "utf-8")
    with pytest.raises(ModelError, match="not a model folder"):
        export("merged", model, None, documents, verification=False, overwrite=True)
    with pytest.raises(ModelError, match="overwrite its own source"):
        export("merged", model, None, tiny, verification=False, overwrite=True)
    with pytest.raises(ModelError, match="overwrite its own source"):
        export("merged", model, None, tiny.parent, verification=False, overwrite=True)
    with pytest.raises(ModelError, match="this is a file"):
        export("merged", model, None, documents / "thesis.txt", verification=False, overwrite=True)
    assert (documents / "thesis.txt").exists() and (tiny / "config.json").exists()


def test_a_gguf_put_into_a_folder_is_named_after_model_run_and_format(tiny: Path, tmp_path: Path) -> None:
    adapter = made_adapter(tiny, tmp_path / "我的 run" / "adapter")
    folder = tmp_path / "exports 导出"
    folder.mkdir()
    done = export("gguf", ModelFolder.open(tiny, "org/base"), adapter, folder, "q8_0", verification=False)
    assert done.files == [folder / "org-base-我的 run-Q8_0.gguf"]
    assert done.as_json()["files"] == [str(done.files[0])] and done.as_json()["bytes"] == done.files[0].stat().st_size


def test_a_failed_gate_keeps_the_export_under_another_name(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> Verification:
        raise VerificationFailed("greedy text: prompt 1, token 3.")

    monkeypatch.setattr(verify, "prepare", lambda *_: None)
    monkeypatch.setattr(verify, "verify", fails)
    out = tmp_path / "m.gguf"
    out.write_bytes(b"the one before")
    with pytest.raises(VerificationFailed, match=r"token 3\. It is kept in .*m\.gguf\.failed"):
        export("gguf", ModelFolder.open(tiny), None, out, overwrite=True)
    assert out.read_bytes() == b"the one before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf", "m.gguf.failed"]


def test_a_stop_in_verification_leaves_nothing(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> Verification:
        raise KeyboardInterrupt

    monkeypatch.setattr(verify, "prepare", lambda *_: None)
    monkeypatch.setattr(verify, "verify", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export("merged", ModelFolder.open(tiny), None, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", ["gemma", "gemma2"])
def test_other_families_are_refused_with_what_to_do(family: str, tmp_path: Path) -> None:
    model = ModelFolder.open(tiny_model(tmp_path / family, family))
    with pytest.raises(ModelError, match=rf"'{family}' model, which cannot be exported to GGUF yet .*--to merged"):
        export("gguf", model, None, tmp_path / "x.gguf", verification=False)


def test_what_cannot_be_run_here_is_known_before_anything_is_written(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise ModelError("this family cannot be run here.")

    def never(*_: object) -> None:
        raise AssertionError("something was written")

    monkeypatch.setattr(verify, "prepare", refuses)
    monkeypatch.setattr(targets()["merged"], "write", never)
    with pytest.raises(ModelError, match="cannot be run here"):
        export("merged", ModelFolder.open(tiny), None, tmp_path / "m")
    assert not list(tmp_path.iterdir())
