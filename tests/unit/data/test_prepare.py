from __future__ import annotations

import errno
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_local.data.conversation import Conversation, Message, Source, content_key, held_out
from finetune_local.data.dataset import store
from finetune_local.data.dataset.prepare import Prepared, conversations, open_prepared, prepare
from finetune_local.data.dataset.store import Dataset, Row, Writer
from finetune_local.data.tokenizers.tokenizer import Tokenizer
from finetune_local.spec.run import DataSettings
from finetune_local.system.errors import DataError, DiskFull


def row(number: int) -> dict[str, Any]:
    return {"prompt": f"问题 {number}?", "completion": f"answer {number}"}


def write(path: Path, found: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in found), "utf-8")
    return str(path)


def prepared(folder: Path, tokenizer: Tokenizer, *files: str, seed: int = 1, **settings: Any) -> Prepared:
    return prepare(DataSettings(files=files, **settings), tokenizer, seed, folder, 256, lambda *_: None)


def texts(data: Dataset, tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.text(data.row(i).ids.tolist(), special=True) for i in range(len(data))]


def test_rows_are_split_and_nothing_is_lost(tmp_path: Path, tokenizer: Tokenizer) -> None:
    file = write(tmp_path / "数据 a.jsonl", [row(i) for i in range(50)])
    data = prepared(tmp_path / "run 一", tokenizer, file, validation=0.1)
    train, validation = texts(data.train, tokenizer), texts(data.validation, tokenizer)
    assert (len(train), len(validation)) == (45, 5)
    assert not set(train) & set(validation)
    expected = {tokenizer.render(_messages(i)).rstrip("\n") for i in range(50)}
    assert set(train) | set(validation) == expected
    ids, mask = data.train.row(3).ids, data.train.row(3).mask
    assert tokenizer.text(ids[mask].tolist(), special=True).startswith("answer ")
    assert data.train.lengths.dtype == np.int32
    assert data.train.tokens == int(data.train.lengths.sum())
    assert data.train.supervised + data.validation.supervised == data.report.supervised_tokens
    assert data.report.tokens == data.train.tokens + data.validation.tokens
    assert (data.report.train_rows, data.report.validation_rows) == (45, 5)


def test_the_split_does_not_depend_on_order_or_file(tmp_path: Path, tokenizer: Tokenizer) -> None:
    numbers = list(range(40))
    random.Random(3).shuffle(numbers)
    one = prepared(tmp_path / "a", tokenizer, write(tmp_path / "a.jsonl", [row(i) for i in range(40)]), validation=0.2)
    parts = [write(tmp_path / f"{k}.jsonl", [row(i) for i in numbers[k::2]]) for k in (0, 1)]
    two = prepared(tmp_path / "b", tokenizer, *parts, validation=0.2)
    other = prepared(tmp_path / "c", tokenizer, *parts, validation=0.2, seed=2)
    sides = [set(texts(data.validation, tokenizer)) for data in (one, two, other)]
    assert sides[0] == sides[1] != sides[2]
    assert len(sides[0]) == len(sides[2]) == 8


def test_equal_conversations_stay_on_one_side(tmp_path: Path, tokenizer: Tokenizer) -> None:
    alpaca = [{"instruction": f"问题 {i}?", "output": f" answer {i}"} for i in range(20)]
    files = write(tmp_path / "a.jsonl", [row(i) for i in range(20)] * 3), write(tmp_path / "b.jsonl", alpaca)
    data = prepared(tmp_path / "run", tokenizer, *files, validation=0.3)
    clean = [
        {t.replace("assistant\n ", "assistant\n") for t in texts(d, tokenizer)} for d in (data.train, data.validation)
    ]
    assert not clean[0] & clean[1]
    assert (len(data.train), len(data.validation)) == (14 * 4, 6 * 4)
    assert data.report.duplicates == 60
    assert data.report.format == "prompt_completion+alpaca"


@given(st.lists(st.integers(0, 2**64 - 1), max_size=60), st.floats(0, 0.9), st.randoms())
def test_the_number_held_out_is_exact(keys: list[int], fraction: float, rng: random.Random) -> None:
    found = set(held_out(np.array(keys, np.uint64), fraction).tolist())
    unique = len(set(keys))
    expected = 0 if fraction == 0 or unique < 2 else min(max(1, round(fraction * unique)), unique - 1)
    assert len(found) == expected
    assert found <= set(keys)
    shuffled = keys * 2
    rng.shuffle(shuffled)
    assert set(held_out(np.array(shuffled, np.uint64), fraction).tolist()) == found


def test_keys_tell_turns_apart() -> None:
    def key(*turns: tuple[str, str], seed: int = 1) -> int:
        return content_key(Conversation(tuple(Message(r, c) for r, c in turns), Source("f", 1)), seed)  # type: ignore[arg-type]

    base = key(("user", "ab"), ("assistant", "c"))
    assert base == key(("user", " ab"), ("assistant", "c\n"))
    assert base != key(("user", "a"), ("assistant", "bc"))
    assert base != key(("assistant", "ab"), ("user", "c"))
    assert base != key(("user", "ab"), ("assistant", "c"), seed=2)


def test_validation_files_of_their_own_and_leaks(tmp_path: Path, tokenizer: Tokenizer) -> None:
    train = write(tmp_path / "t.jsonl", [row(i) for i in range(20)])
    valid = write(tmp_path / "v.jsonl", [row(i) for i in range(17, 25)] + [{"bad": 1}])
    data = prepared(tmp_path / "run", tokenizer, train, validation_files=(valid,))
    assert (len(data.train), len(data.validation)) == (17, 8)
    assert data.report.leaks == 3
    assert not set(texts(data.train, tokenizer)) & set(texts(data.validation, tokenizer))
    assert data.report.rejected[0]["file"] == valid
    assert len(conversations(tmp_path / "run")) == 8
    with pytest.raises(DataError, match="nothing is left"):
        prepared(tmp_path / "all", tokenizer, train, validation_files=(train,))


def test_rejected_rows_are_kept_with_their_place(tmp_path: Path, tokenizer: Tokenizer) -> None:
    found = [row(1), {"prompt": "x"}, row(2), {"prompt": "word " * 400, "completion": "y"}]
    file = write(tmp_path / "a.jsonl", found)
    data = prepared(tmp_path / "run", tokenizer, file)
    kept = [json.loads(line) for line in (tmp_path / "run" / "rejected.jsonl").read_text("utf-8").splitlines()]
    assert [(r["file"], r["line"]) for r in kept] == [(file, 2), (file, 4)]
    assert "--max-length" in kept[1]["reason"]
    assert data.report.rejected_count == 2
    assert [dict(r) for r in data.report.rejected] == kept
    assert (data.report.rows, data.report.used) == (4, 2)


def test_no_usable_row_is_an_error_with_reasons(tmp_path: Path, tokenizer: Tokenizer) -> None:
    file = write(tmp_path / "a.jsonl", [{"prompt": "x"}] * 5)
    with pytest.raises(DataError, match=r"no row can be used(?s:.*)line 3") as caught:
        prepared(tmp_path / "run", tokenizer, file)
    assert "line 4" not in str(caught.value)
    assert not (tmp_path / "run" / "data.json").exists()


def test_opening_needs_no_source_file(tmp_path: Path, tokenizer: Tokenizer) -> None:
    file = write(tmp_path / "a.jsonl", [row(i) for i in range(30)])
    data = prepared(tmp_path / "run", tokenizer, file)
    sums = json.loads((tmp_path / "run" / "data.json").read_text("utf-8"))["report"]["files"]
    assert len(sums[0]["sha256"]) == 64
    assert sums[0]["bytes"] == Path(file).stat().st_size
    Path(file).unlink()
    again = open_prepared(tmp_path / "run")
    assert again.report == data.report
    for one, two in ((data.train, again.train), (data.validation, again.validation)):
        assert texts(one, tokenizer) == texts(two, tokenizer)
        assert all((one.row(i).mask == two.row(i).mask).all() for i in range(len(one)))


@pytest.mark.slow
def test_the_kept_conversations_are_held_out_ones(tmp_path: Path, tokenizer: Tokenizer) -> None:
    file = write(tmp_path / "a.jsonl", [row(i) for i in range(1500)])
    data = prepared(tmp_path / "run", tokenizer, file, validation=0.5)
    found = conversations(tmp_path / "run")
    assert (len(data.validation), len(found)) == (750, 512)
    held = set(texts(data.validation, tokenizer))
    assert all(tokenizer.render(c.messages).rstrip("\n") in held for c in found)
    assert len({c.messages for c in found}) == 512
    assert conversations(tmp_path / "run", limit=5) == found[:5]
    few = prepared(tmp_path / "few", tokenizer, file, validation=0.01)
    assert len(conversations(tmp_path / "few")) == len(few.validation) == 15


def test_cut_conversations_are_kept_as_they_were_trained(tmp_path: Path, tokenizer: Tokenizer) -> None:
    turns = [
        {"role": role, "content": f"{role} 第{i}句 {k}"}
        for i in range(30)
        for role in ("user", "assistant")
        for k in [0]
    ]
    file = write(
        tmp_path / "a.jsonl",
        [
            {"messages": [*turns, {"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "end"}]}
            for n in range(4)
        ],
    )
    data = prepared(tmp_path / "run", tokenizer, file, validation=0.5)
    assert data.report.truncated == 4
    (first, _) = conversations(tmp_path / "run")
    assert tokenizer.render(first.messages).rstrip("\n") in texts(data.validation, tokenizer)


def test_no_validation_and_plain_texts(tmp_path: Path, tokenizer: Tokenizer) -> None:
    file = write(tmp_path / "a.jsonl", [{"text": "长文 " * 400}, {"text": "short"}])
    data = prepared(tmp_path / "run", tokenizer, file, validation=0.0)
    assert len(data.validation) == 0
    assert data.validation.tokens == data.validation.supervised == 0
    assert len(data.train) == data.report.examples > 3
    assert data.report.used == 2
    assert conversations(tmp_path / "run") == []


def test_the_limit_counts_usable_rows(tmp_path: Path, tokenizer: Tokenizer) -> None:
    file = write(tmp_path / "a.jsonl", [{"bad": 1}, *(row(i) for i in range(20))])
    data = prepared(tmp_path / "run", tokenizer, file, limit=10, validation=0.2)
    assert (len(data.train), len(data.validation)) == (8, 2)


def test_progress_is_the_share_of_bytes(tmp_path: Path, tokenizer: Tokenizer) -> None:
    file = write(tmp_path / "a.jsonl", [row(i) for i in range(2000)])
    told: list[tuple[str, float | None]] = []
    settings = DataSettings(files=(file,))
    prepare(settings, tokenizer, 1, tmp_path / "run", 256, lambda text, share: told.append((text, share)))
    shares = [share for text, share in told if text == "reading data" and share is not None]
    assert len(shares) >= 5
    assert shares == sorted(shares)
    assert 0 < shares[0] < 0.9 < shares[-1] <= 1


def test_an_interruption_leaves_nothing_that_looks_prepared(tmp_path: Path, tokenizer: Tokenizer) -> None:
    file = write(tmp_path / "a.jsonl", [row(i) for i in range(2000)])
    settings = DataSettings(files=(file,))
    folder = tmp_path / "run"
    prepare(settings, tokenizer, 1, folder, 256, lambda *_: None)

    def stop(text: str, share: float | None) -> None:
        if share is not None and share > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(settings, tokenizer, 1, folder, 256, stop)
    assert not (folder / "data.json").exists()
    assert not list(folder.glob("passed.*"))
    with pytest.raises(DataError, match="Start a new run"):
        open_prepared(folder)
    assert len(prepare(settings, tokenizer, 1, folder, 256, lambda *_: None).train) == 1800


def test_a_full_disk_is_told_as_such(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a.jsonl", [row(i) for i in range(5)])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store.np, "ascontiguousarray", full)
    with pytest.raises(DiskFull, match="no space is left"):
        prepared(tmp_path / "run", tokenizer, file)
    assert not (tmp_path / "run" / "data.json").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_device_is_told_as_such_when_the_buffer_is_flushed(tmp_path: Path) -> None:
    writer = Writer(tmp_path, "train")
    with pytest.raises(DiskFull), writer:
        writer._ids.close()
        writer._ids = Path("/dev/full").open("wb")  # noqa: SIM115 - the writer closes it
        writer.add(Row(np.zeros(10, np.int32), np.zeros(10, np.bool_)))
    assert not (tmp_path / "train.offsets").exists()


@pytest.mark.parametrize("suffix", [".ids", ".mask", ".offsets"])
def test_a_damaged_store_is_not_opened(tmp_path: Path, tokenizer: Tokenizer, suffix: str) -> None:
    prepared(tmp_path / "run", tokenizer, write(tmp_path / "a.jsonl", [row(i) for i in range(5)]))
    path = tmp_path / "run" / f"train{suffix}"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataError, match="Start a new run"):
        open_prepared(tmp_path / "run")


def _messages(number: int) -> list[Message]:
    return [Message("user", f"问题 {number}?"), Message("assistant", f"answer {number}")]


def test_how_rows_are_read_holds_for_what_is_learned_and_what_is_kept(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "fragen.csv"
    path.write_text("frage,antwort\n" + "".join(f"mail {i}@b.org?,answer {i}\n" for i in range(20)), "utf-8")
    settings = {"columns": ("prompt=frage", "completion=antwort"), "scrub": ("email",), "validation": 0.25}
    data = prepared(tmp_path / "run", tokenizer, str(path), **settings)
    both = texts(data.train, tokenizer) + texts(data.validation, tokenizer)
    assert len(both) == 20 and all("mail [email]?" in text and "@b.org" not in text for text in both)
    assert all("@b.org" not in m.content for c in conversations(tmp_path / "run") for m in c.messages)
    assert "@b.org" not in (tmp_path / "run" / "validation.jsonl").read_text("utf-8")
    again = open_prepared(tmp_path / "run").report
    assert (again.personal, again.scrubbed, again.format) == ({"email": 20}, ("email",), "prompt_completion")


def test_scrubbed_copies_stay_on_one_side(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """What becomes equal by scrubbing is equal to the split."""
    path = write(tmp_path / "a.jsonl", [{"prompt": f"I am x{i}@b.org", "completion": f"a{i % 10}"} for i in range(40)])
    data = prepared(tmp_path / "run", tokenizer, path, scrub=("email",), validation=0.3)
    train, validation = set(texts(data.train, tokenizer)), set(texts(data.validation, tokenizer))
    assert train and validation and not train & validation
    assert data.report.duplicates == 30


def test_a_chat_log_is_learned_by_conversations(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "chat.txt"
    lines = [
        f"[{day}/1/24, 10:{minute:02d}] {('Eva', 'Bo')[minute % 2]}: {day} {minute}"
        for day in range(1, 21)
        for minute in range(6)
    ]
    path.write_text("\n".join(lines), "utf-8")
    data = prepared(tmp_path / "run", tokenizer, str(path), assistant="Bo", validation=0.2)
    assert (len(data.train), len(data.validation)) == (16, 4)
    assert data.report.speakers == {"Eva": 60, "Bo": 60}
    ids, mask = data.train.row(0).ids, data.train.row(0).mask
    assert tokenizer.text(ids[mask].tolist()).split()[0::2] != []


def test_data_of_before_these_settings_can_still_be_opened(tmp_path: Path, tokenizer: Tokenizer) -> None:
    prepared(tmp_path / "run", tokenizer, write(tmp_path / "a.jsonl", [row(i) for i in range(4)]))
    place = tmp_path / "run" / "data.json"
    values = json.loads(place.read_text("utf-8"))
    for name in ("personal", "scrubbed", "speakers"):
        values["report"].pop(name)
    place.write_text(json.dumps(values), "utf-8")
    assert open_prepared(tmp_path / "run").report.scrubbed == ()
