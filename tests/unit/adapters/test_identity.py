"""Which base an adapter belongs to, and what happens on another."""

import errno
import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from finetune_local.adapter_format import WEIGHTS, read_adapter
from finetune_local.adapters.identity import FILE, check_same_base, check_shapes, read_identity, write_identity
from finetune_local.models.folder import ModelFolder
from finetune_local.system.errors import AdapterError, DiskFull
from made import made_adapter
from tiny import tiny_model


def test_what_is_written_is_read_back(tiny: Path, tmp_path: Path) -> None:
    base = ModelFolder.open(tiny, "我的模型")
    write_identity(tmp_path, base.identity(), "run 一", {"method": "dora", "step": 7})
    read = read_identity(tmp_path)
    assert read is not None
    assert (read.base, read.run, read.method, read.extra) == (base.identity(), "run 一", "dora", {"step": 7})
    assert read.created.endswith("+00:00") and read.app_version
    values = json.loads((tmp_path / FILE).read_text("utf-8"))
    assert set(values["base"]) == {"name", "config_sha256", "tokenizer_sha256"}


def test_the_same_model_under_another_name_is_the_same_base(tiny: Path, tmp_path: Path) -> None:
    made_adapter(tiny, tmp_path / "a")
    identity = read_identity(tmp_path / "a")
    assert identity is not None
    check_same_base(identity, ModelFolder.open(tiny_model(tmp_path / "copy"), "renamed"))


def test_another_config_or_tokenizer_is_refused_by_name(tiny: Path, tmp_path: Path) -> None:
    made_adapter(tiny, tmp_path / "a")
    identity = read_identity(tmp_path / "a")
    assert identity is not None
    deeper = ModelFolder.open(tiny_model(tmp_path / "deeper", layers=3))
    with pytest.raises(AdapterError, match=r"differs from it in its config \(") as refused:
        check_same_base(identity, deeper)
    assert "tiny llama 小" in str(refused.value) and "deeper" in str(refused.value)
    folder = tiny_model(tmp_path / "template")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}", "utf-8")
    with pytest.raises(AdapterError, match="in its tokenizer or chat template"):
        check_same_base(identity, ModelFolder.open(folder))


def test_shapes_are_checked_module_by_module(tiny: Path, tmp_path: Path) -> None:
    made_adapter(tiny, tmp_path / "a", plain=True)
    plan, _ = read_adapter(tmp_path / "a")
    check_shapes(plan, ModelFolder.open(tiny))
    shallow = ModelFolder.open(tiny_model(tmp_path / "shallow", layers=1))
    with pytest.raises(AdapterError, match=r"model\.layers\.1\..*does not have"):
        check_shapes(plan, shallow)
    config = json.loads((tiny / "config.json").read_text("utf-8"))
    assert config["hidden_size"] == 64
    target = plan.targets[0]
    wrong = type(plan)(plan.method, plan.tuner, plan.settings, (type(target)(target.module, 63, target.out_features),))
    with pytest.raises(AdapterError, match=r"64 × 63, but .* 64 × 128"):
        check_shapes(wrong, ModelFolder.open(tiny))


def test_no_file_is_plain_peft_and_a_broken_one_is_an_error(tiny: Path, tmp_path: Path) -> None:
    made_adapter(tiny, tmp_path / "a", plain=True)
    assert read_identity(tmp_path / "a") is None
    (tmp_path / "a" / FILE).write_text('{"base": {}}', "utf-8")
    with pytest.raises(AdapterError, match="delete this file"):
        read_identity(tmp_path / "a")


def test_a_full_disk_is_told_with_what_to_do(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    base = ModelFolder.open(tiny)
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(DiskFull, match="Free some space"):
        write_identity(tmp_path, base.identity(), None, {"method": "lora"})


def test_names_of_another_class_are_told(tiny: Path, tmp_path: Path) -> None:
    adapter = made_adapter(tiny, tmp_path / "theirs", plain=True)
    own = load_file(adapter / WEIGHTS)
    save_file(
        {name.replace("model.layers", "model.language_model.layers"): t for name, t in own.items()}, adapter / WEIGHTS
    )
    plan, _ = read_adapter(adapter)
    with pytest.raises(
        AdapterError, match=r"named 'model.language_model.layers...', but those of .* 'model.layers...'"
    ):
        check_shapes(plan, ModelFolder.open(tiny))
