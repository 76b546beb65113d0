"""Finding, importing, renaming, removing adapters."""

import errno
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from finetune_local.adapter_format import CONFIG, WEIGHTS, read_adapter
from finetune_local.adapters import identity, library, manage
from finetune_local.adapters.companions import trained_raw
from finetune_local.backend import Device
from finetune_local.cli.main import main
from finetune_local.inference.engine import _precision
from finetune_local.system import checksums, paths
from finetune_local.system.errors import AdapterError, DiskFull
from made import made_adapter

RUN = {"model": {"id": "D:/models/base"}, "data": {"template": "raw", "files": ["/data/orders.jsonl"]}}


@pytest.fixture
def stocked(home: paths.Home, tiny: Path) -> paths.Home:
    """A home with a finished run, an unfinished one, and an imported adapter."""
    run = home.runs / "订单 1"
    made_adapter(tiny, run / "adapter", run="订单 1")
    (run / "run.json").write_text(json.dumps(RUN), "utf-8")
    (home.runs / "half").mkdir()
    made_adapter(tiny, home.adapters / "friend", plain=True)
    return home


def names(home: paths.Home) -> list[str]:
    return [entry.name for entry in library.entries(home)]


def test_runs_and_imports_are_listed(stocked: paths.Home) -> None:
    listed = [entry.describe() for entry in library.entries(stocked)]
    assert [(e.name, e.origin) for e in listed] == [("订单 1", "run"), ("friend", "imported")]
    assert listed[0].base == listed[1].base == "tiny llama 小"
    assert listed[0].method == listed[1].method == "lora" and listed[0].rank == 2


def test_a_damaged_adapter_is_listed_beside_the_others(stocked: paths.Home, capsys: pytest.CaptureFixture[str]) -> None:
    (stocked.adapters / "friend" / CONFIG).write_text("[]", "utf-8")
    with pytest.raises(SystemExit) as ended:
        main(["adapters", "--json"])
    listed = json.loads(capsys.readouterr().out)
    assert ended.value.code == 0
    assert [entry["name"] for entry in listed] == ["订单 1", "friend"]
    assert listed[0]["problem"] is None and listed[0]["files"] == ["/data/orders.jsonl"]
    assert "a JSON object is expected" in listed[1]["problem"]
    with pytest.raises(SystemExit):
        main(["adapters"])
    assert "cannot be used: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "said"), [({"init_lora_weights": "pissa_niter_4"}, "changed the base"), ({"r": None}, "lacks 'r'")]
)
def test_a_config_that_would_be_computed_wrongly_is_refused(
    stocked: paths.Home, change: dict[str, object], said: str
) -> None:
    config = stocked.adapters / "friend" / CONFIG
    config.write_text(json.dumps({**json.loads(config.read_text("utf-8")), **change}), "utf-8")
    with pytest.raises(AdapterError, match=said):
        read_adapter(config.parent)


@pytest.mark.parametrize("names", ["lm_head", ["k_proj"], r".*visual.*"])
def test_modules_that_were_left_out_when_it_was_made_change_nothing(stocked: paths.Home, names: object) -> None:
    config = stocked.adapters / "friend" / CONFIG
    before = read_adapter(config.parent)[0]
    config.write_text(json.dumps({**json.loads(config.read_text("utf-8")), "exclude_modules": names}), "utf-8")
    assert read_adapter(config.parent)[0] == before, "its tensors say where they land"


def test_an_adapter_is_found_by_name_run_or_folder(stocked: paths.Home, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = (stocked.runs / "订单 1" / "adapter").resolve()
    for way in ("订单 1", str(adapter), str(adapter.parent)):
        assert library.find(way, stocked) == adapter
    monkeypatch.chdir(stocked.adapters)
    assert library.find("friend", stocked) == (stocked.adapters / "friend").resolve()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("frend", "Did you mean 'friend'"),
        ("half", "did not finish.*resume half"),
        ("./nowhere", "folder not found"),
        ("nothing like it", "Known: 订单 1, friend"),
    ],
)
def test_what_is_not_found_says_what_to_do(stocked: paths.Home, asked: str, said: str) -> None:
    with pytest.raises(AdapterError, match=said):
        library.find(asked, stocked)


def test_the_base_is_the_one_the_run_named_else_the_recorded_one(stocked: paths.Home, tiny: Path) -> None:
    assert library.base_of(stocked.runs / "订单 1" / "adapter") == "D:/models/base"
    made_adapter(tiny, stocked.runs / "订单 1" / "checkpoints" / "step-000001")
    assert library.base_of(stocked.runs / "订单 1" / "checkpoints" / "step-000001") == "D:/models/base"
    assert library.base_of(stocked.adapters / "friend") == "tiny llama 小"


@pytest.mark.parametrize(
    "values", [{"model": 5, "data": [1]}, {"model": {"id": 7, "precision": []}, "data": {"files": 3}}, {}]
)
def test_a_damaged_run_json_does_not_keep_its_adapter_from_being_used(stocked: paths.Home, values: Any) -> None:
    folder = library.find("订单 1", stocked)
    (folder.parent / "run.json").write_text(json.dumps(values), "utf-8")
    assert library.details("订单 1", folder, "run").facts.files == []
    assert library.base_of(folder) and not trained_raw(folder)
    assert _precision(None, [folder], Device("cpu", "cpu", "", 2**30, False)) == ("fp32", "auto")


def test_a_folder_and_a_zip_are_imported_alike(stocked: paths.Home, tiny: Path, tmp_path: Path) -> None:
    source = made_adapter(tiny, tmp_path / "新 adapter", seed=4)
    (source / "training_args.bin").write_bytes(b"\x80\x04pickle")
    archive = tmp_path / "packed.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in source.iterdir():
            file.write(path, f"some folder/{path.name}")
    first, second = manage.bring_in(source, stocked), manage.bring_in(archive, stocked, "从zip")
    assert names(stocked) == ["订单 1", "friend", "从zip", "新 adapter"] and first.name == "新 adapter"
    for entry in (first, second):
        assert not (entry.folder / "training_args.bin").exists()
        assert (entry.folder / WEIGHTS).read_bytes() == (source / WEIGHTS).read_bytes()
        assert entry.identity is not None


@pytest.mark.parametrize(
    "member", ["../evil/adapter_config.json", "/abs/adapter_config.json", "C:/x/adapter_config.json"]
)
def test_a_zip_that_points_outside_is_refused(stocked: paths.Home, tmp_path: Path, member: str) -> None:
    archive = tmp_path / "bad.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(member, "{}")
    with pytest.raises(AdapterError, match="outside the archive"):
        manage.bring_in(archive, stocked)
    assert names(stocked) == ["订单 1", "friend"]


def test_pickles_broken_files_and_other_things_are_refused(stocked: paths.Home, tiny: Path, tmp_path: Path) -> None:
    pickled = made_adapter(tiny, tmp_path / "pickled")
    (pickled / WEIGHTS).rename(pickled / "adapter_model.bin")
    with pytest.raises(AdapterError, match="pickle"):
        manage.bring_in(pickled, stocked)
    broken = made_adapter(tiny, tmp_path / "broken")
    (broken / WEIGHTS).write_bytes((broken / WEIGHTS).read_bytes()[:-100])
    with pytest.raises(AdapterError, match=r"broken.*Copy the adapter again"):
        manage.bring_in(broken, stocked)
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdapterError, match="not an adapter"):
        manage.bring_in(tmp_path / "empty", stocked)
    with pytest.raises(AdapterError, match="does not exist"):
        manage.bring_in(tmp_path / "nowhere", stocked)
    two = tmp_path / "two.zip"
    with zipfile.ZipFile(two, "w") as file:
        file.writestr(f"a/{CONFIG}", "{}")
        file.writestr(f"b/{CONFIG}", "{}")
    with pytest.raises(AdapterError, match="2 adapters"):
        manage.bring_in(two, stocked)
    assert names(stocked) == ["订单 1", "friend"]
    assert list(stocked.adapters.glob(".*")) == []


@pytest.mark.parametrize("name", ["friend", "订单 1", "a/b", "..", "base", "con:"])
def test_names_that_are_taken_or_impossible_are_refused(stocked: paths.Home, tiny: Path, name: str) -> None:
    source = made_adapter(tiny, stocked.cache / "source")
    with pytest.raises(AdapterError, match="--name"):
        manage.bring_in(source, stocked, name)


def test_renaming_and_notes(stocked: paths.Home) -> None:
    manage.write_note("friend", " 很好用 \n", stocked)
    renamed = manage.rename("friend", "老朋友", stocked)
    assert renamed.note == "很好用" and names(stocked) == ["订单 1", "老朋友"]
    manage.write_note("老朋友", "", stocked)
    assert renamed.note == ""
    with pytest.raises(AdapterError, match="adapters import"):
        manage.rename("订单 1", "x", stocked)


@pytest.mark.parametrize("name", ["订单 1", "friend"])
def test_what_is_removed_can_be_taken_back(stocked: paths.Home, name: str) -> None:
    before = library.entry(name, stocked)
    _, tensors = read_adapter(before.folder)
    manage.remove(name, stocked)
    assert name not in names(stocked) and not before.folder.exists()
    if name == "订单 1":
        assert (stocked.runs / name / "run.json").exists(), "a run keeps everything else"
    assert manage.restore(None if name == "friend" else name, stocked) == before
    assert set(read_adapter(before.folder)[1]) == set(tensors)
    with pytest.raises(AdapterError, match="trash"):
        manage.restore(name, stocked)


def test_taking_back_does_not_overwrite(stocked: paths.Home) -> None:
    copy = stocked.cache / "copy"
    shutil.copytree(stocked.adapters / "friend", copy)
    manage.remove("friend", stocked)
    manage.bring_in(copy, stocked, "friend")
    with pytest.raises(AdapterError, match="cannot be restored"):
        manage.restore("friend", stocked)
    assert [removed.name for removed in manage.trashed(stocked)] == ["friend"]


def test_an_adapter_whose_run_is_gone_comes_back_as_one_of_its_own(stocked: paths.Home) -> None:
    manage.remove("订单 1", stocked)
    shutil.rmtree(stocked.runs / "订单 1")
    assert manage.restore("订单 1", stocked).origin == "imported"
    assert not (stocked.runs / "订单 1").exists()


def test_a_list_says_what_each_is_and_reads_only_what_changed(
    stocked: paths.Home, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_adapter(tiny, stocked.adapters / "cut")
    (stocked.adapters / "cut" / WEIGHTS).write_bytes(b"short")
    (stocked.runs / "a file").write_text("x", "utf-8")
    known = library.Library(stocked)
    first = {facts.name: facts for facts in known.listing()}
    assert [first[name].problem is None for name in ("订单 1", "friend", "cut")] == [True, True, False]
    assert first["friend"].parameters == sum(
        array.size for array in read_adapter(stocked.adapters / "friend")[1].values()
    )
    read: list[str] = []
    real = library.Entry.listed
    monkeypatch.setattr(library.Entry, "listed", lambda entry: (read.append(entry.name), real(entry))[1])
    assert {facts.name: facts for facts in known.listing()} == first
    assert read == []
    manage.write_note("friend", "tried it", stocked)
    assert [facts.note for facts in known.listing() if facts.name == "friend"] == ["tried it"]
    assert read == ["friend"]


def test_details_are_told_without_reading_the_weights(stocked: paths.Home, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = stocked.adapters / "friend"
    plan, _ = read_adapter(folder)
    monkeypatch.setattr("finetune_local.adapter_format.read_tensors", None)
    told = library.details("friend", folder, "imported")
    assert told.modules == len(plan.targets) and told.settings["rank"] == 2 and told.mergeable
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    (folder / CONFIG).write_text(json.dumps({**config, "r": 3}), "utf-8")
    with pytest.raises(AdapterError, match="says"):
        library.details("friend", folder, "imported")


def test_what_was_extracted_follows_a_new_name(stocked: paths.Home, tiny: Path) -> None:
    made_adapter(tiny, stocked.adapters / "small")
    identity.rewrite(stocked.adapters / "small", extracted_from={"adapter": "friend", "run": "elsewhere", "rank": 4})
    manage.rename("friend", "老朋友", stocked)
    assert library.entry("small", stocked).extracted_from == {"adapter": "老朋友", "run": "elsewhere", "rank": 4}


def test_a_full_disk_leaves_no_half_import(
    stocked: paths.Home, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = made_adapter(tiny, tmp_path / "new one")

    real = Path.open

    def full(path: Path, mode: str = "r", **options: Any) -> Any:
        if "x" in mode:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, mode, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(DiskFull, match="import again"):
        manage.bring_in(source, stocked)
    assert list(stocked.adapters.iterdir()) == [stocked.adapters / "friend"]


def test_an_import_is_kept_with_checksums_and_what_the_user_writes_is_not_damage(
    stocked: paths.Home, tiny: Path, tmp_path: Path
) -> None:
    source = made_adapter(tiny, tmp_path / "new one")
    (source / library.NOTE).write_text("before", "utf-8")
    entry = manage.bring_in(source, stocked)
    assert set(checksums.read(entry.folder) or {}) >= {CONFIG, WEIGHTS, identity.FILE}
    manage.write_note("new one", "after", stocked)
    renamed = manage.rename("new one", "newer", stocked)
    identity.rewrite(renamed.folder, run="elsewhere")
    read_adapter(renamed.folder)
    weights = renamed.folder / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(AdapterError, match=r"does not match its checksum\. Copy the adapter again"):
        read_adapter(renamed.folder)


def test_what_was_damaged_on_the_way_is_not_imported(stocked: paths.Home, tiny: Path, tmp_path: Path) -> None:
    source = made_adapter(tiny, tmp_path / "sent")
    (source / "left behind.txt").write_text("x", "utf-8")
    checksums.write(source)
    (source / "left behind.txt").unlink()
    manage.bring_in(source, stocked, "good")
    (source / WEIGHTS).write_bytes((source / WEIGHTS).read_bytes()[:-1] + b"\x01")
    with pytest.raises(AdapterError, match=r"sent: adapter_model\.safetensors has changed since it was written"):
        manage.bring_in(source, stocked, "bad")
    assert not (stocked.adapters / "bad").exists()
