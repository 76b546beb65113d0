"""What is imported is copied from real files of known names within a budget: no link is followed, nothing waited for, nothing left."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from finetune_local.adapter_format import CONFIG, WEIGHTS, read_adapter
from finetune_local.adapters import import_files, library, manage
from finetune_local.system.errors import AdapterError
from finetune_local.system.paths import Home
from made import made_adapter

unix = pytest.mark.skipif(os.name == "nt", reason="such files are of Unix")


@pytest.fixture
def source(tiny: Path, tmp_path: Path) -> Path:
    return made_adapter(tiny, tmp_path / "theirs")


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_text("the secret 秘密", "utf-8")
    return file


def refused(source: Path, home: Home, words: str) -> None:
    """It is refused with these words, and nothing is left behind."""
    with pytest.raises(AdapterError, match=words):
        manage.bring_in(source, home, "new")
    assert list(home.adapters.iterdir()) == []


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@unix
def test_no_link_is_followed(source: Path, home: Home, secret: Path) -> None:
    (source / "README.md").symlink_to(secret)
    notes: list[str] = []
    entry = manage.bring_in(source, home, "new", notes.append)
    assert notes == ["README.md is skipped: it is a link to another file."]
    assert secret.read_bytes() not in everything_in(entry.folder)
    manage.remove("new", home)
    for name in (CONFIG, WEIGHTS, "tokenizer.json", "chat_template.jinja"):
        kept = (source / name).read_bytes() if (source / name).exists() else None
        (source / name).unlink(missing_ok=True)
        (source / name).symlink_to(secret)
        refused(source, home, "is a link to another file")
        (source / name).unlink()
        if kept is not None:
            (source / name).write_bytes(kept)


@unix
def test_a_folder_that_is_a_link_is_not_gone_into(source: Path, home: Home, tmp_path: Path) -> None:
    place = tmp_path / "a run"
    place.mkdir()
    (place / "adapter").symlink_to(source, target_is_directory=True)
    refused(place, home, "not an adapter folder")
    (place / "adapter").unlink()
    (place / "adapter").symlink_to("..", target_is_directory=True)  # a folder above
    refused(place, home, "not an adapter folder")


@unix
def test_a_snapshot_of_the_hub_s_cache_is_imported(source: Path, home: Home, secret: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--x--y"
    snapshot, blobs = repository / "snapshots" / "1a", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, name in enumerate((CONFIG, WEIGHTS)):
        blob = blobs / (f"{number}" * 40)
        shutil.copyfile(source / name, blob)
        (snapshot / name).symlink_to(f"../../blobs/{blob.name}")
    assert manage.bring_in(snapshot, home, "cached").name == "cached"
    manage.remove("cached", home)
    blob.unlink()
    blob.symlink_to(secret)
    refused(snapshot, home, "is a link to another file")


@unix
@pytest.mark.parametrize("name", ["README.md", CONFIG, WEIGHTS, "tokenizer_config.json"])
@pytest.mark.parametrize("kind", ["pipe", "socket", "folder"])
def test_what_is_no_file_is_not_waited_for(source: Path, home: Home, name: str, kind: str) -> None:
    place = source / name
    place.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as server:
            here = Path.cwd()
            os.chdir(source)  # a socket's path is short
            try:
                server.bind(name)
            finally:
                os.chdir(here)
    try:
        manage.bring_in(source, home, "new")
    except AdapterError as error:
        assert name in str(error)
        assert list(home.adapters.iterdir()) == []
    else:
        assert name == "README.md" and kind != "folder"


def test_a_readme_that_is_a_gigabyte_is_left_out(source: Path, home: Home) -> None:
    with (source / "README.md").open("wb") as file:
        file.truncate(2**30)
    notes: list[str] = []
    entry = manage.bring_in(source, home, "new", notes.append)
    assert not (entry.folder / "README.md").exists() and "larger than 4 MB" in notes[0]
    with (source / "tokenizer.json").open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(AdapterError, match="larger than 67 MB"):
        manage.bring_in(source, home, "other")


def packed(source: Path, archive: Path, change: Callable[[zipfile.ZipFile], None] = lambda _: None) -> Path:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in source.iterdir():
            file.write(path, f"in/{path.name}")
        change(file)
    return archive


def test_a_bomb_is_refused_before_it_is_unpacked(source: Path, home: Home, tmp_path: Path) -> None:
    (source / WEIGHTS).write_bytes(b"\0" * (20 * 2**20))
    refused(packed(source, tmp_path / "bomb.zip"), home, r"unpacks to \d+ times its size")


def test_a_zip_that_breaks_off_is_called_that(source: Path, home: Home, tmp_path: Path) -> None:
    archive = packed(source, tmp_path / "a.zip")
    archive.write_bytes(archive.read_bytes()[:-200])
    refused(archive, home, "is incomplete")


def test_a_long_readme_in_a_zip_is_left_out(source: Path, home: Home, tmp_path: Path) -> None:
    archive = packed(source, tmp_path / "a.zip", lambda file: file.writestr("in/README.md", b"#" * (5 * 2**20)))
    notes: list[str] = []
    assert not (manage.bring_in(archive, home, "new", notes.append).folder / "README.md").exists()
    assert "larger than 4 MB" in notes[0]


def test_a_member_given_twice_or_as_a_link_is_refused(source: Path, home: Home, tmp_path: Path) -> None:
    def twice(file: zipfile.ZipFile) -> None:
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr(f"in/{WEIGHTS}", b"x")

    refused(packed(source, tmp_path / "twice.zip", twice), home, "in it twice")

    def link(file: zipfile.ZipFile) -> None:
        info = zipfile.ZipInfo("in/tokenizer.json")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(info, "/etc/passwd")

    refused(packed(source, tmp_path / "link.zip", link), home, "is a link")


def test_too_many_members_are_refused_unread(
    source: Path, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_files, "_MOST_DIRECTORY", 5000)
    archive = packed(source, tmp_path / "many.zip", lambda f: [f.writestr(f"x{i}", "") for i in range(200)] and None)
    refused(archive, home, "too many files")


def test_a_damaged_zip_is_a_sentence(source: Path, home: Home, tmp_path: Path) -> None:
    good = packed(source, tmp_path / "good.zip").read_bytes()
    archive = tmp_path / "bad.zip"
    at = good.rindex(b"PK\x01\x02")
    for content in (
        good[:at]
        + good[at : at + 42]
        + struct.pack("<I", 2**32 - 1)
        + good[at + 46 :],  # a member before the file begins: EINVAL
        good[: len(good) // 2] + good[len(good) // 2 + 3 :],
        good[:100] + b"\xff" * 60 + good[160:],
        good[: at + 10] + b"\x63\x00" + good[at + 12 :],  # an unknown way to pack
    ):
        archive.write_bytes(content)
        with pytest.raises(AdapterError):
            manage.bring_in(archive, home, "new")
        assert list(home.adapters.iterdir()) == []


def change(source: Path, **fields: Any) -> None:
    values = json.loads((source / CONFIG).read_text("utf-8")) | fields
    (source / CONFIG).write_text(json.dumps(values), "utf-8")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"r": 10**9}, "'r' is 1000000000, but"),
        ({"r": 10**4000}, "contains a number of 4001 digits"),
        ({"lora_alpha": float("nan")}, "'lora_alpha' is nan"),
        ({"lora_alpha": float("inf")}, "'lora_alpha' is inf"),
        ({"lora_dropout": -0.5}, "'lora_dropout' is -0.5"),
        ({"rank_pattern": [4]}, "'rank_pattern' is a list"),
        ({"rank_pattern": {"q_proj": [True]}}, "rank_pattern"),
        ({"alpha_pattern": "q_proj"}, "'alpha_pattern' is 'q_proj'"),
        ({"alpha_pattern": {"(": 2}}, "not a valid regular expression"),
        ({"peft_type": ["LORA"]}, "'peft_type' is a list"),
        ({"peft_type": "FINETUNE_LOCAL", "family": "low_rank"}, "'settings' is missing"),
        ({"base_model_name_or_path": "\ud800"}, "base_model_name_or_path"),
        ({"modules_to_save": 7}, "'modules_to_save' is 7"),
    ],
)
def test_what_no_field_may_be_is_named(source: Path, home: Home, fields: dict[str, Any], words: str) -> None:
    change(source, **fields)
    refused(source, home, words)


@pytest.mark.slow
def test_a_pattern_that_takes_for_ever_is_refused(source: Path, home: Home) -> None:
    change(source, rank_pattern={r"((\w|\.|\w\w)+)+[!?]": 2})
    refused(source, home, "takes more than a second")
    change(source, rank_pattern={f".*(q|{number}).*_proj_{number}": 3 for number in range(100)}, alpha_pattern={})
    manage.bring_in(source, home, "slow but true")


def test_target_modules_are_not_run(source: Path, home: Home) -> None:
    change(source, target_modules="(([a-z_0-9.]+)+)+!")
    assert manage.bring_in(source, home, "new").name == "new"


def test_tensors_that_cannot_be_are_named(source: Path, home: Home) -> None:
    tensors = load_file(source / WEIGHTS)
    name = next(name for name in tensors if "lora_B" in name)
    for value in (np.nan, np.inf):
        save_file({**tensors, name: np.full_like(tensors[name], value)}, source / WEIGHTS)
        refused(source, home, rf"{name} contains NaN")
    save_file({**tensors, name: tensors[name].reshape((1,) * 30 + tensors[name].shape)}, source / WEIGHTS)
    refused(source, home, r"has 32 dimensions")
    content = (source / WEIGHTS).read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    header[name]["shape"] = [1] * 72
    text = json.dumps(header).encode()
    (source / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    refused(source, home, r"72 dimensions|cannot be read")


@pytest.mark.parametrize("word", ["_orig_mod.", "module."])
def test_a_wrapper_s_words_are_no_part_of_a_name(source: Path, home: Home, word: str) -> None:
    plan, tensors = read_adapter(source)
    save_file(
        {name.replace("base_model.model.", f"base_model.model.{word}"): t for name, t in tensors.items()},
        source / WEIGHTS,
    )
    assert read_adapter(source)[0] == plan
    notes: list[str] = []
    entry = manage.bring_in(source, home, "new", notes.append)
    assert "wrapper" in notes[0]
    assert load_file(entry.folder / WEIGHTS).keys() == tensors.keys()
    np.testing.assert_equal(read_adapter(entry.folder)[1], tensors)


def test_a_state_dict_of_peft_s_own_model_is_read(source: Path, home: Home) -> None:
    plan, tensors = read_adapter(source)
    named = {
        name.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default."): t
        for name, t in tensors.items()
    }
    save_file(named, source / WEIGHTS)
    assert read_adapter(source)[0] == plan
    save_file({name.removeprefix("base_model.model."): t for name, t in tensors.items()}, source / WEIGHTS)
    assert read_adapter(source)[0] == plan
    first = next(iter(tensors))
    save_file(
        {**tensors, first.replace("base_model.model.", "base_model.model._orig_mod."): tensors[first]}, source / WEIGHTS
    )
    refused(source, home, "stored twice")


def test_other_things_are_called_what_they_are(source: Path, home: Home, tiny: Path, tmp_path: Path) -> None:
    refused(tiny, home, "a whole model")
    shutil.copyfile(tiny / "model.safetensors", source / WEIGHTS)
    refused(source, home, "it contains full model weights .*not an adapter")
    (source / WEIGHTS).unlink()
    (source / "adapter_model.bin").write_bytes(b"\x80\x04.")
    refused(source, home, "is a pickle")
    with pytest.raises(AdapterError, match="LOHA cannot be used"):
        change(source, peft_type="LOHA")
        (source / "adapter_model.bin").unlink()
        save_file({"base_model.model.x.hada_w1_a": np.ones((2, 2), np.float32)}, source / WEIGHTS)
        manage.bring_in(source, home, "new")


@pytest.mark.parametrize(
    "name",
    [
        "\ud800",
        "a\0b",
        "CON",
        "com1.txt",
        "COM¹",
        "nul .x",
        "x\u202ey",
        "a\u2028b",
        "\x7f",
        "é" * 101,
        " ",
        "..",
        "a/b",
    ],
)
def test_names_that_cannot_be_are_refused(source: Path, home: Home, name: str) -> None:
    with pytest.raises(AdapterError, match="--name") as caught:
        manage.bring_in(source, home, name)
    str(caught.value).encode("utf-8")
    assert list(home.adapters.iterdir()) == []


def test_damaged_ones_are_listed_beside_the_others(source: Path, home: Home) -> None:
    manage.bring_in(source, home, "good")
    for number, content in enumerate(
        (b"\xff", b"[1]", b'{"r": ' + b"9" * 5000 + b"}", b"[" * 100_000, b'{"peft_type": 5}')
    ):
        shutil.copytree(home.adapters / "good", home.adapters / f"bad {number}")
        (home.adapters / f"bad {number}" / CONFIG).write_bytes(content)
    told = {one.name: one.problem for one in library.listing(home)}
    assert told.pop("good") is None
    assert len(told) == 5 and all(CONFIG in str(problem) for problem in told.values())
