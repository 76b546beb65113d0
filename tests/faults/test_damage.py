"""Forty kinds of damage to the newest checkpoint, and others to what else a run keeps: it goes on from what is intact and ends as
if nothing had happened, or says what can still be done."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from faults.toy_backend import ToyBackend
from finetune_local import backend as port
from finetune_local.data.dataset.prepare import REJECTED
from finetune_local.spec.run import parse_spec
from finetune_local.system.checksums import SUMS
from finetune_local.system.errors import AdapterError, DamagedRun, DataError
from finetune_local.system.paths import Home
from finetune_local.training import multi_adapter
from finetune_local.training.checkpoints import checkpoint, restore
from finetune_local.training.events import Event, Note
from finetune_local.training.loop import Loop
from finetune_local.training.run_folder import runs
from finetune_local.training.run_folder.runs import Run
from finetune_local.training.setup import Ready, make_ready
from training import assert_same, losses, result

NEWEST = "step-000006"


def flip(at: Callable[[int], int]) -> Callable[[bytes], bytes]:
    """One bit of one byte."""

    def damage(content: bytes) -> bytes:
        changed = bytearray(content)
        changed[at(len(content))] ^= 0x10
        return bytes(changed)

    return damage


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "a bit in the middle": flip(lambda size: size // 2),
    "a bit at the head": flip(lambda size: min(60, size - 1)),
    "a bit at the end": flip(lambda size: size - 2),
    "cut in half": lambda content: content[: len(content) // 2],
    "empty": lambda _: b"",
    "zeros": lambda content: bytes(len(content)),
    "noise": lambda content: np.random.default_rng(len(content)).bytes(len(content)),
    "removed": lambda _: None,
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setattr(port, "backends", lambda: {"toy": ToyBackend()})
    return Home(tmp_path / "home")


@pytest.fixture
def whole(home: Home, tiny: Path, tmp_path: Path) -> Run:
    """A run that was let be."""
    return finished(make(home, tiny, tmp_path, "whole"), home)


@pytest.fixture
def half(home: Home, tiny: Path, tmp_path: Path) -> Run:
    """The same one, stopped after six of nine steps."""
    run = make(home, tiny, tmp_path, "half")
    steps = iter(range(9))
    train(run, home, lambda: next(steps) == 6)
    assert [p.name for p in checkpoint.every(run.checkpoints)] == ["step-000003", NEWEST]
    return run


def make(home: Home, tiny: Path, place: Path, name: str) -> Run:
    rows = [{"prompt": f"say {i}", "completion": f"ok {i % 5}"} for i in range(20)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    training = {"max_steps": 9, "batch_size": 4, "validate_every": 9, "checkpoint_every": 3, "sample_rows": 1,
                "sample_tokens": 1, "learning_rate": 1e-2}  # fmt: skip
    tables = {
        "name": name,
        "backend": "toy",
        "model": {"id": str(tiny), "precision": "fp32"},
        "data": {"files": [str(place / "rows.jsonl")], "validation": 0.2},
        "method": {"key": "lora", "rank": 2},
        "training": training,
    }
    return runs.create(home, parse_spec(tables, "test"))


def train(run: Run, home: Home, stop: Callable[[], bool] = lambda: False) -> None:
    """As the worker does, in this process."""
    for item in make_ready(run, home):
        if isinstance(item, Event):
            run.append(item)
    assert isinstance(item, Ready)
    for event in multi_adapter.events(Loop(item, stop)):
        run.append(event)


def finished(run: Run, home: Home) -> Run:
    train(run, home)
    assert run.status() == "finished"
    return run


def notes(run: Run) -> str:
    return "\n".join(event.text for event in run.history() if isinstance(event, Note))


def write(file: Path, content: bytes | None) -> None:
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)


def test_forty_damages_of_the_newest_checkpoint(half: Run, whole: Run, home: Home) -> None:
    template = home.root / "template"
    shutil.copytree(half.folder, template)
    tried = 0
    for name in checkpoint.FILES:
        for what, damage in DAMAGES.items():
            shutil.rmtree(half.folder)
            shutil.copytree(template, half.folder)
            file = half.checkpoints / NEWEST / name
            write(file, damage(file.read_bytes()))
            finished(half, home)
            assert_same(result(half), result(whole))
            assert losses(half.history()) == losses(whole.history()), (name, what)
            assert f"{NEWEST} cannot be used ({name}" in notes(half), (name, what)
            assert "continues from step-000003" in notes(half)
            assert (half.folder / "damaged" / NEWEST).is_dir()
            tried += 1
    assert tried == 40


@pytest.mark.parametrize("what", DAMAGES)
def test_damage_of_the_checksums_themselves(half: Run, whole: Run, home: Home, what: str) -> None:
    file = half.checkpoints / NEWEST / SUMS
    write(file, DAMAGES[what](file.read_bytes()))
    finished(half, home)
    assert_same(result(half), result(whole))
    assert ("cannot be used" in notes(half)) == (what != "removed")  # without any, it is as one of an older version


def test_a_list_of_checksums_that_lost_its_end_is_damaged(half: Run, whole: Run, home: Home) -> None:
    file = half.checkpoints / NEWEST / SUMS
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:2]))
    (half.checkpoints / NEWEST / checkpoint.OPTIMIZER).write_bytes(b"")
    finished(half, home)
    assert_same(result(half), result(whole))


def state(change: dict[str, Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / SUMS).unlink()  # as an older version wrote it, so that nothing but the values can tell
        values = json.loads((folder / checkpoint.STATE).read_text("utf-8"))
        (folder / checkpoint.STATE).write_text(json.dumps(values | change), "utf-8")

    return damage


def other_optimizer(folder: Path) -> None:
    (folder / SUMS).unlink()
    save_file({"moment.x": np.zeros((2, 2), np.float32)}, folder / checkpoint.OPTIMIZER)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (state({"step": 3}), "says step 3"),
        (state({"step": 10**9}), "says step 1000000000"),
        (state({"step": 10**30}), "step is 1000000000"),
        (state({"step": "x"}), "step is 'x'"),
        (state({"step": -5}), "step is -5"),
        (state({"step": float("nan")}), "step is nan"),
        (state({"first_loss": float("nan")}), "first_loss is nan"),
        (state({"recent_losses": ["x"]}), "recent_losses"),
        (state({"recent_losses": None}), "recent_losses"),
        (state({"best_step": 7}), "best step 7"),
        (state({"new_counter": 1}), "written by a newer version"),
        (other_optimizer, "another adapter"),
    ],
)
def test_counters_that_cannot_be(half: Run, whole: Run, home: Home, damage: Callable[[Path], None], said: str) -> None:
    damage(half.checkpoints / NEWEST)
    finished(half, home)
    assert_same(result(half), result(whole))
    assert said in notes(half) and "continues from step-000003" in notes(half)
    assert "Copy the adapter" not in notes(half)


def test_what_only_looks_like_a_newer_checkpoint(half: Run, whole: Run, home: Home) -> None:
    (half.checkpoints / "step-000019").mkdir()
    (half.checkpoints / "step-000999").write_text("x", "utf-8")
    (half.checkpoints / "step-²").mkdir()  # a digit to Python, no number
    finished(half, home)
    assert_same(result(half), result(whole))
    assert "step-000019 cannot be used (it is empty)" in notes(half)
    assert "step-000999 cannot be used (it is not a folder)" in notes(half)
    assert sorted(os.listdir(half.folder / "damaged")) == ["step-000019", "step-000999"]  # noqa: PTH208


def test_where_none_is_intact_nothing_is_moved_and_the_way_out_is_told(half: Run, home: Home) -> None:
    for place in checkpoint.every(half.checkpoints):
        (place / checkpoint.OPTIMIZER).unlink()
    with pytest.raises(DamagedRun) as refused:
        train(half, home)
    said = str(refused.value)
    assert "step-000006: optimizer.safetensors is missing; step-000003: optimizer.safetensors is missing" in said
    assert "restore it and resume" in said and "--config" in said and "half-again" in said
    assert len(checkpoint.every(half.checkpoints)) == 2 and not (half.folder / "damaged").exists()


def test_checkpoints_that_are_gone_are_missed(half: Run, whole: Run, home: Home) -> None:
    shutil.rmtree(half.checkpoints)
    finished(half, home)
    assert_same(result(half), result(whole))
    assert "are missing, so it starts over" in notes(half)


def test_one_of_an_older_version_is_read_without_checksums(half: Run, whole: Run, home: Home) -> None:
    for file in half.folder.rglob(SUMS):
        file.unlink()
    finished(half, home)
    assert_same(result(half), result(whole))
    assert "cannot be used" not in notes(half)


@pytest.mark.parametrize(
    "name", ["train.ids", "train.mask", "train.offsets", "validation.ids", "validation.jsonl", "data.json", SUMS]
)
@pytest.mark.parametrize("what", ["a bit in the middle", "cut in half", "removed"])
def test_damaged_rows_are_made_again(half: Run, whole: Run, home: Home, name: str, what: str) -> None:
    file = half.data / name
    write(file, DAMAGES[what](file.read_bytes()))
    finished(half, home)
    assert_same(result(half), result(whole))
    assert ("rebuilt from its files and is identical" in notes(half)) == ((name, what) != (SUMS, "removed"))


@pytest.mark.parametrize("gone", [True, False])
def test_damaged_rows_that_cannot_be_made_again(half: Run, home: Home, tmp_path: Path, gone: bool) -> None:
    (half.data / "train.ids").write_bytes(b"")
    if gone:
        (tmp_path / "rows.jsonl").unlink()
    else:
        (tmp_path / "rows.jsonl").write_text('{"prompt": "other", "completion": "rows"}\n' * 9, "utf-8")
    with pytest.raises(DamagedRun, match=r"damaged \(train\.ids has changed since it was written.*(rebuilt|resume)"):
        train(half, home)
    assert (half.data / "train.mask").exists() and len(checkpoint.every(half.checkpoints)) == 2


def unordered(offsets: np.ndarray) -> np.ndarray:
    offsets[3] = 10**6
    return offsets


@pytest.mark.parametrize(
    ("name", "kind", "change"),
    [
        ("train.offsets", np.int64, unordered),
        ("train.offsets", np.int64, lambda offsets: offsets + 1),
        ("train.ids", np.int32, lambda ids: -ids),
        ("train.ids", np.int32, lambda ids: ids + 2**30),
    ],
)
def test_rows_of_an_older_version_that_cannot_be(
    half: Run, home: Home, name: str, kind: Any, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    (half.data / SUMS).unlink()
    change(np.fromfile(half.data / name, kind)).tofile(half.data / name)
    with pytest.raises(DataError, match="the prepared"):
        train(half, home)


def test_prompts_of_an_older_version_that_are_damaged(half: Run, home: Home) -> None:
    (half.data / SUMS).unlink()
    (half.data / "validation.jsonl").write_text("{garbage\n", "utf-8")
    with pytest.raises(DataError, match=r"validation\.jsonl: line 1 is damaged"):
        train(half, home)


def test_the_list_of_rejected_rows_is_the_user_s(half: Run, whole: Run, home: Home, tmp_path: Path) -> None:
    """Also where the rows could not be made again."""
    (half.data / REJECTED).unlink()
    (tmp_path / "rows.jsonl").unlink()
    finished(half, home)
    assert_same(result(half), result(whole))


def test_a_damaged_adapter_is_not_used_and_the_advice_is_for_a_run(whole: Run) -> None:
    file = whole.adapter / "adapter_model.safetensors"
    file.write_bytes(DAMAGES["a bit at the end"](file.read_bytes()))
    with pytest.raises(AdapterError, match="runs check whole --repair") as refused:
        result(whole)
    assert "Copy the adapter" not in str(refused.value)
    (whole.adapter / SUMS).unlink()
    result(whole)


def test_a_run_does_not_go_on_upon_other_weights(half: Run, whole: Run, home: Home, tiny: Path, tmp_path: Path) -> None:
    weights = shutil.copytree(tiny, tmp_path / "base") / "model.safetensors"
    half.write_spec(
        half.spec.model_copy(update={"model": half.spec.model.model_copy(update={"id": str(weights.parent)})})
    )
    content = weights.read_bytes()
    weights.write_bytes(DAMAGES["a bit in the middle"](content) or b"")
    before = sorted(half.checkpoints.rglob("*"))
    with pytest.raises(DamagedRun, match=r"model\.safetensors differs.*Restore the original model"):
        train(half, home)
    assert sorted(half.checkpoints.rglob("*")) == before
    weights.write_bytes(content)
    finished(half, home)
    assert_same(result(half), result(whole))


@pytest.mark.parametrize("text", [None, "{", '{"whole": true}', "[]"])
def test_a_run_that_does_not_know_its_base_goes_on(half: Run, whole: Run, home: Home, text: str | None) -> None:
    file = half.folder / restore.BASE_FILE
    if text is None:
        file.unlink()  # an older version's
    else:
        file.write_text(text, "utf-8")
    finished(half, home)
    assert_same(result(half), result(whole))
    assert ("is unknown whether" in notes(half)) == (text is not None)
