from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from finetune_local.cli.data import LEARNED_STYLE, _coloured, command
from finetune_local.data.conversation import Conversation, Message, Source
from finetune_local.data.encoding.encode import encode
from finetune_local.data.inspect import STEP_ROWS, Inspection, pieces
from finetune_local.data.report import histogram
from finetune_local.data.tokenizers.tokenizer import Tokenizer
from finetune_local.spec.run import DataSettings
from finetune_local.system.errors import DataError

CHAT: list[dict[str, Any]] = [{"role": "user", "content": "法国的首都？"}, {"role": "assistant", "content": "巴黎。"}]


def inspect(tiny: Path, *arguments: str, **environment: str) -> Result:
    return CliRunner(env=environment).invoke(
        command, ["inspect", *arguments, "--model", str(tiny)], catch_exceptions=False
    )


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "我的 chats.jsonl"
    longer = [*CHAT, {"role": "user", "content": "And of Spain, please?"}, {"role": "assistant", "content": "Madrid."}]
    found = [
        {"messages": CHAT},
        {"messages": CHAT},
        {"messages": [{"role": "assitant", "content": "x"}]},
        {"messages": longer},
    ]
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in found), "utf-8")
    return str(path)


def test_json_has_the_promised_shape(tiny: Path, file: str) -> None:
    found: dict[str, Any] = json.loads(inspect(tiny, file, "--json").stdout.splitlines()[-1])
    assert (found["format"], found["rows"], found["used"], found["turns"]) == ("openai", 4, 3, 8)
    assert found["rejected"] == [
        {"file": file, "line": 3, "reason": "'messages' has role 'assitant'. Did you mean 'assistant'?"}
    ]
    assert 0 < found["supervised_tokens"] < found["tokens"]
    assert found["duplicates"] == 1
    assert found["longest_place"] == f"{file}, line 4"
    assert sum(bar["rows"] for bar in found["histogram"]) == 3


def test_the_mask_is_marked_without_colours(tiny: Path, file: str) -> None:
    shown = inspect(tiny, file, "--show-mask", "1").stdout
    assert "<|im_start|>assistant\n⟦巴黎。<|im_end|>⟧" in shown
    assert shown.count("⟦") == 1
    all_of_them = inspect(tiny, file, "--show-mask").stdout
    assert all_of_them.count("⟦") == 4
    assert "⟦Madrid.<|im_end|>⟧" in all_of_them
    assert inspect(tiny, "--show-mask", file).stdout == all_of_them
    found = json.loads(inspect(tiny, file, "--show-mask", "1", "--json").stdout)
    assert found["preview"][0].endswith("⟦巴黎。<|im_end|>⟧")


def test_on_a_terminal_the_learned_text_is_coloured(tiny: Path) -> None:
    tokenizer = Tokenizer.load(tiny)
    (row,) = encode(Conversation(tuple(Message(**m) for m in CHAT), Source("f", 1)), tokenizer, "chat", 512)
    text = _coloured(pieces(row, tokenizer))
    assert [str(text)[s.start : s.end] for s in text.spans if s.style == LEARNED_STYLE] == ["巴黎。<|im_end|>"]


def test_the_report_for_people(tiny: Path, file: str) -> None:
    shown = inspect(tiny, file).stdout
    for expected in ("openai in jsonl, utf-8", "rejected", "line 3", "Did you mean 'assistant'?", "█", "duplicates"):
        assert expected in shown


def test_leaks_between_files_are_counted(tiny: Path, file: str, tmp_path: Path) -> None:
    other = tmp_path / "held out.json"
    other.write_text(
        json.dumps(
            [
                {
                    "conversations": [
                        {"from": "human", "value": CHAT[0]["content"]},
                        {"from": "gpt", "value": CHAT[1]["content"]},
                    ]
                }
            ]
        ),
        "utf-8",
    )
    found = json.loads(inspect(tiny, file, "--validation-data", str(other), "--json").stdout)
    assert found["leaks"] == 2


def test_raw_and_max_length_are_followed(tiny: Path, file: str) -> None:
    raw = json.loads(inspect(tiny, file, "--template", "raw", "--json").stdout)
    chat = json.loads(inspect(tiny, file, "--json").stdout)
    assert raw["tokens"] < chat["tokens"]
    assert chat["truncated"] == 0
    cut = json.loads(inspect(tiny, file, "--max-length", str(chat["longest"] - 1), "--json").stdout)
    assert (cut["truncated"], cut["used"]) == (1, 3)


def test_bad_input_is_an_error_of_the_users(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="file not found"):
        inspect(tiny, str(tmp_path / "none.jsonl"))
    assert inspect(tiny).exit_code == 2


def test_lengths_fall_into_bars_that_double() -> None:
    import numpy as np

    bars = histogram(np.array([40, 63, 64, 200, 2048], np.int32))
    assert [(b.low, b.high, b.rows) for b in bars] == [
        (32, 64, 2),
        (64, 128, 1),
        (128, 256, 1),
        (256, 512, 0),
        (512, 1024, 0),
        (1024, 2048, 0),
        (2048, 4096, 1),
    ]
    assert histogram(np.zeros(0, np.int32)) == ()


def looked(tokenizer: Tokenizer | None, *files: str, **more: Any) -> Inspection:
    rows = {name: more.pop(name) for name in ("first", "count", "masked", "only_these") if name in more}
    look = Inspection(DataSettings(files=files, **more), tokenizer, 512, **rows)
    for _ in look.steps():
        pass
    return look


def test_everything_the_window_shows_is_plain_values(tiny: Path, file: str) -> None:
    look = looked(Tokenizer.load(tiny), file, count=2, masked={0}, validation=0.4)
    told = json.loads(json.dumps({**look.as_json(), **look.shown()}))
    assert told["complete"] and told["problems"] == [] and told["unknown"] == []
    assert (told["readable"], told["report"]["used"]) == (3, 3)
    assert [row["number"] for row in told["rows"]] == [0, 1] and not told["end"]
    first = told["rows"][0]
    assert (first["prompt"], first["answer"], first["turns"], first["line"]) == ("法国的首都？", "巴黎。", 2, 1)
    assert 0 < first["learned"] < first["tokens"] == told["masks"]["0"]["tokens"]
    pieces_ = told["masks"]["0"]["pieces"]
    assert "".join(text for text, learned, _ in pieces_ if learned) == "巴黎。<|im_end|>"
    assert {text for text, _, special in pieces_ if special} == {"<|im_start|>", "<|im_end|>"}
    assert told["report"]["train_rows"] + told["report"]["validation_rows"] == 3
    assert told["report"]["validation_rows"] > 0


def test_without_a_tokenizer_rows_are_read_and_shown_by_their_turns(file: str) -> None:
    look = looked(None, file, count=5, masked={2})
    told = {**look.as_json(), **look.shown()}
    assert (told["report"]["used"], told["report"]["tokens"], told["report"]["histogram"]) == (3, 0, ())
    assert [row["tokens"] for row in told["rows"]] == [None] * 3 and told["end"]
    assert [(role, learned) for role, _, learned in told["masks"]["2"]["turns"]] == [
        ("user", False),
        ("assistant", True),
    ] * 2


def test_rows_of_a_page_are_found_without_reading_on(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": f"q{i}", "completion": f"a{i}"}) + "\n" for i in range(1000)), "utf-8"
    )
    look = Inspection(
        DataSettings(files=(str(path),)), Tokenizer.load(tiny), 512, first=120, count=3, masked={7}, only_these=True
    )
    for _ in look.steps():
        if look.readable > 123:
            break
    assert look.readable < 200
    assert [row["answer"] for row in look.shown()["rows"]] == ["a120", "a121", "a122"]
    assert list(look.shown()["masks"]) == ["7"]


def test_a_row_that_is_too_long_is_shown_with_the_reason(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"prompt": "word " * 900, "completion": "x"}), "utf-8")
    look = looked(Tokenizer.load(tiny), str(path), count=5, masked={0})
    (row,) = look.rows
    assert row.tokens is None and "more than the 512" in row.reason
    assert look.as_json()["report"]["rejected_count"] == 1
    assert look.shown()["masks"]["0"]["turns"][0][0] == "user"


def test_files_that_cannot_be_used_do_not_hide_the_others(file: str, tmp_path: Path) -> None:
    broken = tmp_path / "b.parquet"
    broken.write_bytes(b"PAR1xx")
    told = looked(None, file, str(broken), str(tmp_path / "gone.jsonl")).as_json()
    assert told["report"]["used"] == 3
    assert [problem["file"] for problem in told["problems"]] == [str(broken), str(tmp_path / "gone.jsonl")]
    assert "Parquet" in told["problems"][0]["message"]


def test_unknown_columns_come_with_values_and_a_guess(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("Nr,Frage,Antwort\n1,Wer ist das?,Niemand.\n", "utf-8")
    told = looked(None, str(path)).as_json()
    assert told["unknown"] == [str(path)]
    assert told["columns"] == [
        {"name": "Nr", "sample": "1"},
        {"name": "Frage", "sample": "Wer ist das?"},
        {"name": "Antwort", "sample": "Niemand."},
    ]
    assert told["guess"] == {"prompt": "frage", "completion": "antwort"}
    named = looked(None, str(path), columns=("prompt=frage", "completion=antwort")).as_json()
    assert named["unknown"] == [] and named["report"]["used"] == 1
    typo = looked(None, str(path), columns=("prompt=frge",)).as_json()
    assert "Did you mean 'Frage'" in typo["problems"][0]["message"]


def test_preference_data_is_guessed_to_its_good_answers(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "q", "chosen": "good", "rejected": "bad"}), "utf-8")
    told = looked(None, str(path)).as_json()
    assert told["guess"] == {"completion": "chosen"} and told["report"]["used"] == 0
    assert told["kinds"] == ["pair"]
    chosen = looked(None, str(path), count=1, columns=("completion=chosen",))
    assert (chosen.rows[0].prompt, chosen.rows[0].answer) == ("q", "good")


def test_personal_data_is_counted_and_replaced_only_where_it_is_wanted(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        json.dumps({"prompt": "I am a@b.org", "completion": "call 13812345678", "id": "x@y.org"}) + "\n", "utf-8"
    )
    tokenizer = Tokenizer.load(tiny)
    plain, scrubbed = looked(tokenizer, str(path), count=1), looked(tokenizer, str(path), count=1, scrub=("email",))
    assert plain.report().personal == scrubbed.report().personal == {"email": 1, "phone": 1}
    assert (plain.rows[0].prompt, scrubbed.rows[0].prompt) == ("I am a@b.org", "I am [email]")
    assert (plain.report().scrubbed, scrubbed.report().scrubbed) == ((), ("email",))
    assert "phone (1)" in plain.report().notes[0] and "--scrub phone" in scrubbed.report().notes[0]
    assert "email (" not in scrubbed.report().notes[0]


def test_the_command_line_says_all_of_it(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("frage,antwort\nmail a@b.org?,yes\n", "utf-8")
    shown = inspect(
        tiny, str(path), "--column", "prompt=frage", "--column", "completion=antwort", "--scrub", "all"
    ).stdout
    assert "email 1" in shown and "replaced" in shown
    marked = inspect(
        tiny, str(path), "--column", "prompt=frage", "--column", "completion=antwort", "--scrub", "all", "--show-mask"
    ).stdout
    assert "mail [email]?" in marked and "a@b.org" not in marked
    assert inspect(tiny, str(path), "--scrub", "emial").exit_code == 2


def test_halves_of_characters_can_be_told_as_json(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"q\\ud83d": "x\\ud83d", "a": "y"}\n{"messages": [{"role": "r\\ud83d", "content": "x"}]}\n', "utf-8"
    )
    told = json.dumps(looked(None, str(path), count=3, masked={0}).as_json(), ensure_ascii=False)
    assert "\\\\ud83d" in told.encode("utf-8").decode("utf-8")


def test_a_look_can_be_left_and_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": f"a@b{i}.org", "completion": "a"}) + "\n" for i in range(500)), "utf-8"
    )
    look = Inspection(DataSettings(files=(str(path),)), None, 512)
    steps = look.steps()
    share = next(steps)
    partly = look.as_json()
    assert 0 < share < 1 and not partly["complete"]
    assert partly["report"]["used"] == partly["report"]["personal"]["email"] == STEP_ROWS
    for _ in steps:
        pass
    whole = look.as_json()
    assert whole["complete"] and whole["report"]["used"] == whole["report"]["personal"]["email"] == 500


def test_files_that_cannot_be_used_are_told_before_a_model_is_looked_for(tmp_path: Path) -> None:
    files = [str(tmp_path / "gone.jsonl"), str(tmp_path / "lost.jsonl")]
    result = CliRunner().invoke(command, ["inspect", *files, "--model", "nowhere", "--home", str(tmp_path)])
    assert isinstance(result.exception, DataError)
    assert "gone.jsonl" in str(result.exception) and "lost.jsonl" in str(result.exception)
