from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from finetune_local.models.catalog import catalog, entry
from finetune_local.models.install import aside, check_name, installed, publish, source_of
from finetune_local.models.local import (
    add_folder,
    architecture,
    elsewhere,
    forget_folder,
    hub_snapshot,
    installed_models,
    is_gguf,
    model_folders,
)
from finetune_local.models.resolve import find, resolve
from finetune_local.spec.run import DEFAULT_MODEL
from finetune_local.system.errors import ModelError, ModelNotFound
from finetune_local.system.paths import Home
from tiny import tiny_model


def gguf_start(architecture: str) -> bytes:
    def text(value: str) -> bytes:
        return len(value).to_bytes(8, "little") + value.encode()

    start = b"GGUF" + (3).to_bytes(4, "little") + (0).to_bytes(8, "little") + (1).to_bytes(8, "little")
    return start + text("general.architecture") + (8).to_bytes(4, "little") + text(architecture)


def install(home: Home, name: str, **source: str) -> Path:
    with aside(home.models) as folder:
        tiny_model(folder)
        return publish(folder, home.models, name, source).path


def snapshot(cache: Path, repository: str, commit: str) -> Path:
    return tiny_model(cache / f"models--{repository.replace('/', '--')}" / "snapshots" / commit)


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's home folder, empty."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_HUB_CACHE", "OLLAMA_MODELS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_a_path_a_name_and_a_hub_name_are_resolved(home: Home, tmp_path: Path) -> None:
    place = install(home, "my-tiny", **{"from": "some/tiny"})
    for text in ("my-tiny", "some/tiny", str(place), str(place) + "/"):
        assert find(text, home).path == place
    assert find("my-tiny", home).name == "my-tiny"


def test_a_relative_folder_is_found_and_an_installed_name_goes_before_it(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_model(tmp_path / "here" / "模型 a")
    tiny_model(tmp_path / "both")
    place = install(home, "both")
    assert find("here/模型 a", home).path == tmp_path / "here" / "模型 a"
    assert find("both", home).path == place
    assert find("./both", home).path == tmp_path / "both"


def test_a_name_that_is_not_there_says_what_is_and_how_to_get_it(home: Home) -> None:
    with pytest.raises(ModelNotFound, match=r"Installed: none yet\. Download one: .* NAME, for example smollm2-135m, "):
        resolve("my-tyni", home, lambda *_: None)
    with pytest.raises(ModelNotFound, match=r"Did you mean 'qwen3-0\.6b'"):
        resolve("qwen3-0.6", home, lambda *_: None)
    install(home, "my-tiny")
    with pytest.raises(ModelNotFound, match=r"Did you mean 'my-tiny'\? Installed: my-tiny\. Download one"):
        resolve("my-tyni", home, lambda *_: None)
    with pytest.raises(ModelError, match=r"finetune-local models get Qwen/Qwen3-0\.6B"):
        resolve("Qwen/Qwen3-0.6B", home, lambda *_: None)
    with pytest.raises(ModelError, match="folder not found"):
        resolve("./nothing", home, lambda *_: None)


def test_nothing_but_the_default_touches_the_network(home: Home, no_network: None) -> None:
    install(home, DEFAULT_MODEL)
    assert resolve(DEFAULT_MODEL, home, lambda *_: None).name == DEFAULT_MODEL
    with pytest.raises(ModelError):
        resolve("some/other", home, lambda *_: None)


def test_the_hub_cache_is_used_where_it_lies(home: Home, user: Path) -> None:
    cache = user / "hf" / "hub"
    old, new = snapshot(cache, "some/tiny", "aaa"), snapshot(cache, "some/tiny", "bbb")
    assert hub_snapshot("some/other") is None
    refs = cache / "models--some--tiny" / "refs"
    refs.mkdir()
    (refs / "main").write_text("aaa", "utf-8")
    assert hub_snapshot("some/tiny") == old
    model = resolve("some/tiny", home, lambda *_: None)
    assert (model.path, model.name) == (old, "some/tiny")
    (refs / "main").write_text("gone", "utf-8")
    assert hub_snapshot("some/tiny") in (old, new)


def test_models_of_other_programs_are_found(home: Home, user: Path) -> None:
    cache = user / "hf" / "hub"
    snapshot(cache, "some/tiny", "aaa")
    (snapshot(cache, "some/broken", "aaa") / "model.safetensors").write_bytes(b"cut")
    tiny_model(user / ".lmstudio" / "models" / "maker" / "tiny")
    studio = user / ".cache" / "lm-studio" / "models" / "maker" / "files"
    studio.mkdir(parents=True)
    (studio / "a.gguf").write_bytes(gguf_start("qwen3"))
    (studio / "b.gguf").write_bytes(gguf_start("clip"))
    ollama = user / ".ollama" / "models"
    manifest = ollama / "manifests" / "registry.ollama.ai" / "library" / "qwen3" / "0.6b"
    manifest.parent.mkdir(parents=True)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:abc"}
    manifest.write_text(json.dumps({"layers": [layer]}), "utf-8")
    (manifest.parent / "broken").write_text("{", "utf-8")
    (ollama / "blobs").mkdir()
    (ollama / "blobs" / "sha256-abc").write_bytes(gguf_start("qwen3"))
    found = [(f.use, f.place, f.kind, f.family) for f in elsewhere()]
    assert found == [
        ("some/tiny", "Hugging Face cache", "folder", "llama"),
        (str(user / ".lmstudio" / "models" / "maker" / "tiny"), "LM Studio", "folder", "llama"),
        (str(studio / "a.gguf"), "LM Studio", "GGUF", "qwen3"),
        (str(ollama / "blobs" / "sha256-abc"), "Ollama (qwen3:0.6b)", "GGUF", "qwen3"),
    ]
    assert find("some/tiny", home).path.name == "aaa"


def test_the_users_own_folders_are_looked_in(home: Home, user: Path, own_config: None) -> None:
    drive = user / "大 drive"
    tiny_model(drive / "alone")
    tiny_model(drive / "ORG" / "模型 name", "qwen3")
    (tiny_model(drive / "cut") / "model.safetensors").write_bytes(b"cut")
    tiny_model(drive / ".hidden" / "x")
    (drive / "file.gguf").write_bytes(gguf_start("qwen3"))
    (drive / "a" / "b").mkdir(parents=True)
    (drive / "a" / "b" / "deep.gguf").write_bytes(gguf_start("llama"))
    (drive / "text.gguf").write_bytes(b"no gguf")
    found = add_folder(drive)
    assert elsewhere() == found
    assert [(f.use, f.place, f.kind, f.family, bool(f.problem)) for f in found] == [
        (str(drive / "alone"), str(drive), "folder", "llama", False),
        (str(drive / "cut"), str(drive), "folder", "", True),
        (str(drive / "ORG" / "模型 name"), str(drive), "folder", "qwen3", False),
        (str(drive / "file.gguf"), str(drive), "GGUF", "qwen3", False),
        (str(drive / "a" / "b" / "deep.gguf"), str(drive), "GGUF", "llama", False),
    ]
    assert find(found[2].use, home).family == "qwen3"
    add_folder(drive)
    add_folder(drive / "alone")  # a model's own folder can be named as well, and is not listed twice
    assert model_folders() == [drive, drive / "alone"]
    assert len(elsewhere()) == 5
    forget_folder(drive)
    assert [f.use for f in elsewhere()] == [str(drive / "alone")]
    shutil.rmtree(drive)
    assert elsewhere() == []  # a drive that is not plugged in


def test_a_folder_without_models_is_not_remembered(user: Path, own_config: None) -> None:
    (user / "empty").mkdir()
    with pytest.raises(ModelError, match="neither the folder"):
        add_folder(user / "empty")
    with pytest.raises(ModelError, match="connect the drive"):
        add_folder(user / "gone")
    (tiny_model(user / "cut") / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"no tokenizer\.json here"):
        add_folder(user / "cut")
    with pytest.raises(ModelError, match="is not one of the folders"):
        forget_folder(user / "empty")
    assert model_folders() == []


def test_the_licence_is_told_where_it_is_known(home: Home, user: Path) -> None:
    install(home, "a", **{"from": "some/tiny", "license": "mit"})
    install(home, "b", **{"from": "Qwen/Qwen3-0.6B"})
    install(home, "c")
    snapshot(user / "hf" / "hub", "google/gemma-2-2b-it", "aaa")
    assert [f.license for f in installed_models(home)] == ["mit", "Apache-2.0", ""]
    assert [f.license for f in elsewhere()] == ["Gemma"]


def test_an_empty_machine_has_nothing(user: Path) -> None:
    assert elsewhere() == []


def test_a_ggufs_architecture_is_read_from_its_start(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(gguf_start("qwen2"))
    assert is_gguf(tmp_path / "x")
    assert architecture(tmp_path / "x") == "qwen2"
    (tmp_path / "x").write_bytes(b"GGUF" + b"\xff" * 30)
    assert architecture(tmp_path / "x") == ""
    assert not is_gguf(tmp_path / "nothing")


def test_a_damaged_installed_model_is_listed_with_its_problem(home: Home) -> None:
    install(home, "good", **{"from": "some/tiny"})
    bad = install(home, "bad")
    (bad / "model.safetensors").write_bytes(b"cut")
    found = {f.use: f for f in installed_models(home)}
    assert found["good"].problem == ""
    assert found["good"].source == "some/tiny"
    assert "model.safetensors" in found["bad"].problem


def test_a_model_is_made_aside_and_what_fails_leaves_nothing(home: Home) -> None:
    with pytest.raises(ModelError), aside(home.models) as folder:
        tiny_model(folder)
        (folder / "tokenizer.json").unlink()
        assert installed(home.models) == []
        publish(folder, home.models, "x", {})
    assert list(home.models.iterdir()) == []


def test_the_second_of_two_that_make_the_same_model_takes_the_firsts(home: Home) -> None:
    first = install(home, "x", **{"from": "a/b"})
    stamp = (first / "config.json").stat().st_mtime_ns
    assert install(home, "x", **{"from": "a/b"}) == first
    assert (first / "config.json").stat().st_mtime_ns == stamp
    assert source_of(first) == {"from": "a/b"}
    with pytest.raises(ModelError, match="already"):
        install(home, "x", **{"from": "c/d"})


def test_names_that_are_no_folders_are_refused() -> None:
    assert check_name("模型 1.5b") == "模型 1.5b"
    for name in ("", "a/b", "..", ".x", 'a"b', "x" * 101):
        with pytest.raises(ModelError, match="--name"):
            check_name(name)


def test_a_killed_processs_leavings_are_cleared_after_a_day(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    old, young = home.models / ".making-old", home.models / ".making-young"
    for folder in (old, young):
        folder.mkdir()
    os.utime(old, (0, 0))
    with aside(home.models):
        assert not old.exists()
        assert young.exists()
    shutil.rmtree(young)


def test_the_catalog_is_sound() -> None:
    entries = catalog()
    assert entries[0].name == DEFAULT_MODEL
    assert len({e.name for e in entries}) == len(entries)
    for e in entries:
        assert e.parameters > 0
        assert e.license
        # bf16 files: two bytes a parameter, more where a tied head was saved as well; the default comes quantised.
        assert 1.9 * e.parameters < e.download_bytes < 2.6 * e.parameters or e.name == DEFAULT_MODEL
        check_name(e.name)
    found = entry("qwen/qwen3-0.6b")
    assert found is not None
    assert found.name == "qwen3-0.6b"
    assert entry("Qwen3-0.6B") is found
    assert entry("nothing") is None
