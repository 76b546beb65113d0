"""What `models get` and the window's downloads share."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from finetune_local.models.catalog import catalog
from finetune_local.models.download import free_name, get, is_place, repository_of
from finetune_local.models.hub import repository as hub_module
from finetune_local.models.hub.http_file import Transfer
from finetune_local.models.install import installed, remove, source_of
from finetune_local.models.local import is_gguf
from finetune_local.models.resolve import resolve
from finetune_local.spec.run import DEFAULT_MODEL
from finetune_local.system import preferences
from finetune_local.system.errors import DiskFull, DownloadFailed, ModelError, Stopped
from finetune_local.system.paths import Home
from hubserver import Hub
from tiny import tiny_model


def quiet(*_: object) -> None:
    """Progress that nobody looks at."""


def test_a_folder_is_copied_whole_with_where_it_came_from(home: Home, tmp_path: Path) -> None:
    stick = tiny_model(tmp_path / "USB 盘" / "my tiny", shards=2)
    (stick / ".hidden").write_text("x", "utf-8")
    told: list[float | None] = []
    model = get(str(stick), home, lambda _text, done: told.append(done))
    assert (model.name, model.path) == ("my tiny", home.models / "my tiny")
    assert told[-1] == 1.0
    copied = {f.name: f.read_bytes() for f in model.path.iterdir() if f.name != "finetune_local_source.json"}
    assert copied == {f.name: f.read_bytes() for f in stick.iterdir() if f.name != ".hidden"}
    assert source_of(model.path)["copied"] == str(stick)
    with pytest.raises(ModelError, match=r"already.*--name"):
        get(str(stick), home, quiet)
    assert get(str(stick), home, quiet, name="again").name == "again"


def test_a_folder_that_is_no_model_and_a_full_disk_leave_nothing(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no config\.json here"):
        get(str(tmp_path / "empty"), home, quiet)
    with pytest.raises(ModelError, match="file or folder not found"):
        get(str(tmp_path / "gone"), home, quiet)
    stick = tiny_model(tmp_path / "stick")

    def stop(text: str, done: float | None) -> None:
        raise Stopped("stopped")

    with pytest.raises(Stopped):
        get(str(stick), home, stop)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 5, 5))
    with pytest.raises(DiskFull, match="use the model in place"):
        get(str(stick), home, quiet)
    assert not list(home.models.iterdir())


def test_every_name_of_a_model_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("qwen3-0.6b", "Qwen/Qwen3-0.6B", "QWEN3-0.6B"):
        assert repository_of(name) == "Qwen/Qwen3-0.6B"
    assert repository_of(DEFAULT_MODEL) == DEFAULT_MODEL
    assert repository_of("some/other") == "some/other"
    with pytest.raises(ModelError, match="is not in the list"):
        repository_of("nothing")
    (tmp_path / "some" / "empty").mkdir(parents=True)
    tiny_model(tmp_path / "some" / "tiny")
    assert not is_place("some/empty")  # a hub name as well as a folder without a model
    assert is_place("some/tiny")
    assert all(map(is_place, ("~/x", "./x", str(tmp_path))))


def test_a_second_model_of_the_same_name_gets_a_longer_one(home: Home) -> None:
    assert free_name("some/tiny", home) is None
    tiny_model(home.models / "tiny")
    assert free_name("some/tiny", home) == "some-tiny"
    (home.models / "tiny" / "finetune_local_source.json").write_text('{"from": "some/tiny"}', "utf-8")
    assert free_name("some/tiny", home) is None


def test_how_far_it_is_is_told_in_numbers(hub: Hub, home: Home) -> None:
    seen: list[Transfer] = []
    model = get("some/tiny", home, quiet, transfer=seen.append)
    assert seen[-1].here == seen[-1].total
    assert seen[-1].total == sum(f.stat().st_size for f in hub.folder.iterdir())
    assert model.name == "tiny"


def test_what_came_of_a_download_can_be_deleted(hub: Hub, home: Home) -> None:
    def stop(text: str, done: float | None) -> None:
        if done and done > 0.5:
            raise Stopped("stopped")

    with pytest.raises(Stopped):
        get("some/tiny", home, stop)
    cache = home.cache / "downloads"
    (cache / ("a" * 64 + ".part")).write_bytes(b"another's")
    assert len(list(cache.glob("*.part"))) > 2
    (home.cache / "keep.part").write_bytes(b"x")
    hub_module.discard("some/tiny", home)
    assert [f.name for f in cache.iterdir()] == ["a" * 64 + ".part"]
    note = cache / "some--tiny.json"
    note.write_text('["../keep", 3, null]', "utf-8")
    hub_module.discard("some/tiny", home)
    assert (home.cache / "keep.part").exists()
    assert not note.exists()


def test_two_do_not_write_to_the_same_part(hub: Hub, home: Home) -> None:
    def meanwhile(text: str, done: float | None) -> None:
        if done == 1.0 and not installed(home.models):
            with pytest.raises(DownloadFailed, match="by another process"):
                get("some/tiny", home, quiet)

    get("some/tiny", home, meanwhile)
    assert installed(home.models) == ["tiny"]


@pytest.mark.parametrize("what", ["some/tiny", "qwen3-0.6b", DEFAULT_MODEL])
def test_offline_nothing_is_asked_for(hub: Hub, home: Home, own_config: None, no_network: None, what: str) -> None:
    preferences.save(offline=True)
    with pytest.raises(ModelError, match=r"needs the network, and this app is set to stay offline.*Settings"):
        get(what, home, quiet)
    assert not hub.log


def test_offline_what_is_here_can_still_be_had(home: Home, own_config: None, tmp_path: Path, no_network: None) -> None:
    preferences.save(offline=True)
    assert get(str(tiny_model(tmp_path / "stick")), home, quiet).name == "stick"
    tiny_model(home.models / DEFAULT_MODEL)
    assert resolve(DEFAULT_MODEL, home, quiet).name == DEFAULT_MODEL
    assert get(catalog()[0].name, home, quiet).name == DEFAULT_MODEL


def test_only_what_is_installed_is_removed(home: Home) -> None:
    tiny_model(home.models / "tiny")
    for name in ("../models/tiny", "", "gone"):
        with pytest.raises(ModelError, match="is not installed"):
            remove(name, home.models)
    remove("tiny", home.models)
    assert installed(home.models) == []


def test_links_of_a_model_are_followed_and_no_others(tmp_path: Path, home: Home) -> None:
    """As in the Hugging Face cache; a link under any other name could lead anywhere."""
    real, given = tiny_model(tmp_path / "real"), tmp_path / "given"
    given.mkdir()
    for file in real.iterdir():
        (given / file.name).symlink_to(file)
    (tmp_path / "secret").write_text("not the model's", "utf-8")
    (given / "notes.txt").symlink_to(tmp_path / "secret")
    (given / "own notes.txt").write_text("the folder's own", "utf-8")
    model = get(str(given), home, lambda *_: None)
    assert not (model.path / "notes.txt").exists()
    assert (model.path / "own notes.txt").read_text("utf-8") == "the folder's own"
    assert not any(file.is_symlink() for file in model.path.iterdir())
    assert model.blocks == 2


def test_a_pipe_that_is_named_like_a_model_keeps_nobody_waiting(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("there are no named pipes here")
    os.mkfifo(tmp_path / "x.gguf")
    assert not is_gguf(tmp_path / "x.gguf")
