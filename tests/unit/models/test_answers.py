"""A hub's answers are read within limits, whoever runs it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from finetune_local.models.hub.answers import MOST_BYTES, models_in, read_answer, repository_in
from finetune_local.models.hub.http_file import Client, RemoteFile, fetch
from finetune_local.models.hub.repository import choose
from finetune_local.system.errors import DownloadFailed, ModelError
from finetune_local.system.untrusted.text import ForeignTextError

HASH = "a" * 40
FILE: dict[str, Any] = {"rfilename": "config.json", "size": 12, "blobId": HASH}
ANSWER: dict[str, Any] = {"sha": HASH, "siblings": [FILE], "cardData": {"license": "mit"}}


def test_a_repository_is_read() -> None:
    found = repository_in({**ANSWER, "siblings": [FILE, {"rfilename": "onnx/model.onnx", "size": 3}]})
    assert (found.commit, found.license) == (HASH, "mit")
    assert found.files == (RemoteFile("config.json", 12, None, HASH),), "a folder's files are not wanted"


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ([], "no 'sha'"),
        (None, "no 'sha'"),
        ({**ANSWER, "sha": "../../other"}, "no 'sha'"),
        ({**ANSWER, "sha": 5}, "no 'sha'"),
        ({**ANSWER, "siblings": {"a": 1}}, "no 'siblings'"),
        ({**ANSWER, "siblings": [FILE] * 50_001}, "no 'siblings'"),
        ({**ANSWER, "siblings": ["config.json"]}, "no 'rfilename'"),
        ({**ANSWER, "siblings": [{**FILE, "size": -1}]}, r"no 'size' of config\.json"),
        ({**ANSWER, "siblings": [{**FILE, "size": 10**30}]}, "no 'size'"),
        ({**ANSWER, "siblings": [{**FILE, "size": "12"}]}, "no 'size'"),
        ({**ANSWER, "siblings": [FILE, FILE]}, "twice"),
    ],
)
def test_what_no_hub_answers_is_refused(answer: Any, says: str) -> None:
    with pytest.raises(ForeignTextError, match=says):
        repository_in(answer)


def test_files_whose_names_differ_in_capitals_alone_are_one_on_many_disks() -> None:
    shard = {"lfs": {"sha256": "b" * 64, "size": 5}}
    named = [FILE, *({**FILE, "rfilename": n} for n in ("tokenizer.json", "README.md", "Readme.md"))]
    found = repository_in({**ANSWER, "siblings": [*named, {**shard, "rfilename": "model-a.safetensors"}]})
    assert choose("org/one", found.files)[0].name == "config.json", "a second README is none of the model's files"
    both = [{**shard, "rfilename": name} for name in ("model-a.safetensors", "model-A.safetensors")]
    with pytest.raises(ModelError, match="differ only in capitalisation"):
        choose("org/one", repository_in({**ANSWER, "siblings": [*named, *both]}).files)


def test_names_and_hashes_that_lead_elsewhere_are_none() -> None:
    names = ["../config.json", "/etc/passwd", "a\\b", "CON", "x\0y", "\ud800", ".."]
    assert repository_in({**ANSWER, "siblings": [{**FILE, "rfilename": n} for n in names]}).files == ()
    (file,) = repository_in({**ANSWER, "siblings": [{**FILE, "blobId": "../" + HASH}]}).files
    assert file.key == ""
    assert repository_in({**ANSWER, "cardData": {"license": ["x"]}}).license is None


def test_a_list_of_models_of_any_kinds() -> None:
    odd = [None, 5, {"id": "no-slash"}, {"id": "a/../b"}, {"id": "x/y\n"}, {"id": 7}]
    strange = {"id": "org/one", "tags": 5, "config": [], "safetensors": 3, "downloads": "many", "gated": "manual"}
    good = {
        "id": "org/two",
        "tags": ["a", 5],
        "safetensors": {"total": 7},
        "downloads": 9,
        "lastModified": "2026-01-02T",
    }
    one, two = models_in([*odd, strange, good])
    assert (one.name, one.tags, one.parameters, one.downloads, one.gated) == ("org/one", frozenset(), None, 0, True)
    assert (two.name, two.tags, two.parameters, two.downloads, two.updated) == ("org/two", {"a"}, 7, 9, "2026-01-02")
    with pytest.raises(ForeignTextError, match="no list"):
        list(models_in({}))


def endless() -> Iterator[bytes]:
    while True:
        yield b"[" * (1 << 20)


def test_an_answer_without_an_end_is_left() -> None:
    with pytest.raises(ForeignTextError, match=f"larger than {MOST_BYTES / 1e6:.0f} MB"):
        read_answer(endless())
    for wrong in (b"[" * 5000, b"9" * 5000, b"{", b"\xff"):
        with pytest.raises(ForeignTextError):
            read_answer([wrong])
    assert read_answer([b"\xef\xbb\xbf", json.dumps(ANSWER).encode()]) == ANSWER


def client_of(answer: Callable[[], httpx.Response], monkeypatch: pytest.MonkeyPatch) -> Client:
    client = Client("http://127.0.0.1:9", None, lambda _: None)
    made = httpx.Client(transport=httpx.MockTransport(lambda _: answer()))
    monkeypatch.setattr(client, "_http", made)
    return client


def test_a_file_without_an_end_does_not_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most = 0

    def told(count: int) -> None:
        nonlocal most
        most = max(most, (tmp_path / "part").stat().st_size)

    def refuse(*_: object) -> None:
        raise AssertionError

    client = client_of(lambda: httpx.Response(200, content=endless()), monkeypatch)
    with pytest.raises(DownloadFailed, match=r"did not match its checksum|cannot be reached"):
        fetch(client, "http://127.0.0.1:9/x", RemoteFile("x", 1000, "b" * 64, None), tmp_path / "part", told, refuse)
    assert most <= 4 << 20


@pytest.mark.parametrize("location", ["http://[", "http://a b/", "file:///etc/passwd", "x" * 100_000])
def test_a_redirect_to_no_address(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_of(lambda: httpx.Response(302, headers={"location": location}), monkeypatch)
    with pytest.raises((DownloadFailed, httpx.HTTPError)), client.get("http://127.0.0.1:9/x"):
        raise AssertionError
