"""Held-out questions of the run that made an adapter."""

from __future__ import annotations

import json

from finetune_local.evaluation.rows import Example, examples
from finetune_local.system import paths


def row(*messages: tuple[str, str], text: str | None = None) -> str:
    listed = [{"role": role, "content": content} for role, content in messages]
    return json.dumps({"messages": listed, "source": {"file": "f", "line": 1}, "text": text, "ends": True})


def test_single_questions_are_offered_with_the_answer_that_is_wanted(home: paths.Home) -> None:
    run = home.runs / "订单"
    (run / "data").mkdir(parents=True)
    (run / "run.json").write_text("{}", "utf-8")
    rows = [
        row(("user", "one?"), ("assistant", "1")),
        row(("system", "be short"), ("user", "two?"), ("assistant", "2")),
        row(("user", "a"), ("assistant", "b"), ("user", "a longer one"), ("assistant", "c")),
        row(text="a plain text"),
        row(("user", "unanswered")),
    ]
    file = run / "data" / "validation.jsonl"
    file.write_text("".join(line + "\n" for line in rows), "utf-8")
    assert examples(run / "adapter") == (Example("one?", "", "1"), Example("two?", "be short", "2"))
    assert examples(run / "checkpoints" / "step-000004") == examples(run / "adapter")
    file.write_text("{broken\n", "utf-8")
    assert examples(run / "adapter") == ()


def test_an_adapter_of_no_run_has_none(home: paths.Home) -> None:
    assert examples(home.adapters / "imported") == ()
