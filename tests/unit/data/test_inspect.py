from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from finetune_local.cli.data import LEARNED_STYLE, _coloured, command
from finetune_local.data.conversation import Conversation, Message, Source
from finetune_local.data.encode import encode
from finetune_local.data.inspect import pieces
from finetune_local.data.report import histogram
from finetune_local.data.tokenizer import Tokenizer
from finetune_local.errors import DataError

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
    with pytest.raises(DataError, match="no such file"):
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
