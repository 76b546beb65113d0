"""Rows, prompts with examples, and where the examples come from."""

import json
from pathlib import Path

import numpy as np
import pytest

from finetune_local.data.conversation import Conversation, Message, Rejected, RowRejected, Source
from finetune_local.data.tokenizers.tokenizer import Tokenizer
from finetune_local.evaluation.rows import Row, collect, draw, encode_row, row_of, usable, with_examples
from finetune_local.system.errors import SpecError

HERE = Source("f.jsonl", 1)


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Tokenizer:
    return Tokenizer.load(tiny)


def talk(*turns: str, system: str | None = None) -> Conversation:
    roles = ("user", "assistant")
    first = (Message("system", system),) if system else ()
    return Conversation((*first, *(Message(roles[i % 2], t) for i, t in enumerate(turns))), HERE)  # type: ignore[arg-type]


def row(*turns: str, system: str | None = None) -> Row:
    found = row_of(talk(*turns, system=system))
    assert isinstance(found, Row)
    return found


def test_the_last_answer_is_the_reference() -> None:
    found = row("q1", "a1", "q2", "a2", "thanks", system="s")
    assert found.reference == "a2"
    assert [m.content for m in found.prompt] == ["s", "q1", "a1", "q2"]


@pytest.mark.parametrize(
    ("conversation", "why"),
    [
        (Conversation((), HERE, text="plain"), "plain text"),
        (talk("only a question"), "without an answer"),
        (Conversation((Message("assistant", "hello"),), HERE), "no question"),
        (talk("q", "  "), "empty"),
    ],
)
def test_rows_without_a_reference_are_set_aside_with_a_reason(conversation: Conversation, why: str) -> None:
    found = row_of(conversation)
    assert isinstance(found, Rejected) and why in found.reason
    good, bad = collect([conversation, Rejected(HERE, "x"), talk("q", "a"), talk("q", "b")], limit=1)
    assert len(good) == 1 and len(bad) == 2


@pytest.mark.parametrize("template", ["chat", "raw"])
def test_what_is_scored_follows_the_prompt_that_is_asked(tokenizer: Tokenizer, template: str) -> None:
    asked = encode_row(row("你好", "好的", "two", "answer"), [row("eq", "ea")], tokenizer, template, 512, 8)  # type: ignore[arg-type]
    first = int(asked.mask.argmax())
    assert asked.prompt_ids == asked.ids[:first].tolist()
    assert asked.mask[first:].all()
    assert tokenizer.text(asked.ids[first:].tolist()) == "answer"
    assert int(asked.ids[-1]) in tokenizer.stop_ids, "the end of the answer counts too"
    text = tokenizer.text(asked.prompt_ids)
    assert text.index("eq") < text.index("ea") < text.index("你好") < text.index("好的") < text.index("two")


def test_examples_stand_as_turns_after_the_system_prompt() -> None:
    turns = with_examples(row("q", "a", system="mine"), [row("eq", "ea", system="theirs")], "chat")
    assert [(m.role, m.content) for m in turns] == [
        ("system", "mine"), ("user", "eq"), ("assistant", "ea"), ("user", "q"),
    ]  # fmt: skip
    assert with_examples(row("q", "a"), [row("eq", "ea")], "raw")[1].content == "ea\n\n"


def test_examples_give_way_where_the_context_is_short(tokenizer: Tokenizer) -> None:
    examples = [row("word " * 8, "a") for _ in range(5)]
    asked = encode_row(row("q", "a"), examples, tokenizer, "chat", 150, 10)
    assert 0 < asked.examples < 5
    assert len(asked.prompt_ids) + 10 <= 150
    with pytest.raises(RowRejected, match="context is 20"):
        encode_row(row("word " * 30, "a"), (), tokenizer, "chat", 20, 10)
    good, bad = usable([row("q", "a"), row("word " * 30, "a")], tokenizer, "chat", 40)
    assert len(good) == len(bad) == 1


def numbered(count: int, start: int = 0) -> list[Row]:
    return [row(f"q{i}", f"a{i}") for i in range(start, start + count)]


def written(path: Path, rows: list[Row]) -> Path:
    lines = [{"prompt": r.prompt[0].content, "completion": r.reference} for r in rows]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


def keys(rows: list[Row]) -> set[object]:
    return {r.key for r in rows}


def test_examples_of_a_file_are_never_rows_that_are_scored(tmp_path: Path) -> None:
    scored = numbered(10)
    file = written(tmp_path / "train data 训练.jsonl", numbered(14))
    found = draw(scored, 4, 0, file, None)
    assert found.scored == scored
    assert keys(found.shown) == keys(numbered(4, 10))
    with pytest.raises(SpecError, match="only 4 usable"):
        draw(scored, 5, 0, file, None)
    many = written(tmp_path / "many.jsonl", numbered(200, 100))
    first, second = (draw(scored, 4, seed, many, None).shown for seed in (1, 2))
    assert keys(first) != keys(second) and keys(first) == keys(draw(scored, 4, 1, many, None).shown)


def test_examples_come_from_the_run_and_else_from_the_rows_themselves(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "r"
    (run / "adapter").mkdir(parents=True)
    file = written(tmp_path / "t.jsonl", numbered(50, 100))
    (run / "run.json").write_text(json.dumps({"data": {"files": [str(file)]}}), "utf-8")
    found = draw(numbered(10), 3, 0, None, run / "adapter")
    assert "trained on" in found.origin and keys(found.shown) <= keys(numbered(50, 100)) and len(found.scored) == 10
    file.unlink()
    found = draw(numbered(10), 3, 0, None, run / "adapter")
    assert len(found.scored) == 7 and not keys(found.scored) & keys(found.shown)
    with pytest.raises(SpecError, match="has 3 rows"):
        draw(numbered(3), 3, 0, None, None)
    assert np.array_equal(draw(numbered(3), 0, 0, None, None).shown, [])
