"""Base, few-shot base and tuned on a toy whose answers are known; and the verdicts."""

import json
from pathlib import Path

import numpy as np
import pytest

from finetune_local.data.conversation import Message, Source
from finetune_local.data.dataset.prepare import prepare
from finetune_local.evaluation import compare
from finetune_local.evaluation.metrics import metrics
from finetune_local.evaluation.report import Choices, evaluate, judge
from finetune_local.evaluation.rows import Row
from finetune_local.inference.engine import Opened
from finetune_local.spec.batch import Batch, Floats
from finetune_local.spec.run import DataSettings
from finetune_local.system.errors import DataError, SpecError

ROWS = [
    Row((Message("user", f"say {word}"),), word, Source("f", i))
    for i, word in enumerate(["好", "ok", "no", "是的"] * 8)
]


def test_each_condition_is_measured_on_the_same_rows(opened: Opened) -> None:
    shares: list[float] = []
    result = compare.run(opened, ROWS, ROWS[:2], adapter="mine", progress=lambda _n, done: shares.append(done))
    assert result.tuned and result.few_shot
    assert result.tuned.scores["exact"].mean() == 1.0
    assert result.base.scores["exact"].mean() == result.few_shot.scores["exact"].mean() == 0.25
    assert result.tuned.answers == [row.reference for row in ROWS]
    assert result.tuned.loss_per_row.mean() < result.base.loss_per_row.mean()
    per_token = np.log(np.exp(8.0) + opened.tokenizer.vocabulary_size - 1) - 8.0
    assert result.tuned.loss_per_row == pytest.approx(per_token, rel=1e-4)
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1.0)
    found = result.row_json(3)
    assert json.loads(json.dumps(found))["tuned"]["answer"] == "是的" and found["base"]["exact"] == 0.0


def test_base_and_tuned_are_each_asked_with_their_own_template(opened: Opened) -> None:
    folder = opened.adapters["mine"]
    folder.mkdir(parents=True)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        "utf-8",
    )
    session, seen = opened.session, dict[str | None, set[tuple[int, ...]]]()
    score = session.score

    def scored(batch: Batch) -> Floats:
        seen.setdefault(session.active, set()).update(  # type: ignore[attr-defined]
            tuple(ids[:length].tolist()) for ids, length in zip(batch.ids, batch.lengths, strict=True)
        )
        return score(batch)

    session.score = scored  # type: ignore[method-assign]
    result = compare.run(opened, ROWS[:4], (), adapter="mine")
    assert result.tuned and result.tuned.scores["exact"].mean() == 1.0
    texts = {name: [opened.tokenizer.text(ids, special=True) for ids in rows] for name, rows in seen.items()}
    assert all("<|im_end|>\n<|im_start|>assistant" in text for text in texts[None])
    assert all("<|im_end|><|im_start|>assistant" in text for text in texts["mine"])


def test_a_clear_gain_no_gain_and_a_loss_are_told_plainly(opened: Opened) -> None:
    result = compare.run(opened, ROWS, ROWS[:2], adapter="mine")
    helped = judge(result, metrics()["exact"], 0)
    assert helped.text.startswith("The fine-tune helped: exact match up 75.0 points")
    assert "also beats examples" in helped.text and helped.over_base and helped.over_base.low > 0
    assert "loss lower by" in judge(result, metrics()["loss"], 0).text
    turned = compare.Comparison(result.rows, result.tuned, None, result.base, 0)  # type: ignore[arg-type]
    assert judge(turned, metrics()["exact"], 0).text.startswith(
        "The fine-tune made it worse: exact match down 75.0 points"
    )
    same = compare.Comparison(result.rows, result.base, result.tuned, result.base, 0)
    text = judge(same, metrics()["exact"], 0).text
    assert "changed nothing" in text and "does worse than examples in the prompt" in text
    assert "No adapter" in judge(compare.Comparison(result.rows, result.base, None, None, 0), metrics()["f1"], 0).text


def test_an_interval_that_includes_zero_is_said(opened: Opened) -> None:
    result = compare.run(opened, ROWS[:6], (), adapter="mine")
    mixed = compare.Condition(
        "tuned", result.base.answers, result.base.nll, result.base.counts,
        {**result.base.scores, "exact": np.array([1.0, 0, 1, 0, 0, 0])},
    )  # fmt: skip
    text = judge(compare.Comparison(result.rows, result.base, None, mixed, 0), metrics()["exact"], 0).text
    assert "is not clear" in text and "includes 0" in text and "With 6 rows this is rough" in text


def test_the_whole_evaluation_as_json(opened: Opened, tmp_path: Path) -> None:
    file = tmp_path / "held out.jsonl"
    rows = [{"prompt": f"say {w}", "completion": w} for w in ["好", "ok", "no", "是的"] * 8]
    file.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in [*rows, {"prompt": "x"}]), "utf-8")
    notes: list[str] = []
    done = evaluate(opened, Choices(data=(file,), few_shot=2), lambda _n, _d: None, notes.append).as_json()
    assert (done["rows"], done["examples"], done["set_aside"]) == (30, 2, 1)
    assert any("line 33" in note for note in notes)
    for name in ("base", "few_shot", "tuned"):
        assert set(done[name]) == {"loss", "loss_interval", "exact", "contains", "f1"}
        intervals = [v for v in done[name].values() if isinstance(v, dict)]
        assert len(intervals) == 4 and all(v["low"] <= v["mean"] <= v["high"] for v in intervals)
    assert done["tuned"]["exact"]["mean"] == 1.0
    limited = evaluate(opened, Choices(data=(file,), few_shot=0, limit=5), lambda _n, _d: None, notes.append).as_json()
    assert limited["rows"] == 5 and limited["few_shot"] is None


def test_missing_rows_say_what_to_give(opened: Opened, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="--data"):
        evaluate(opened, Choices(), lambda _n, _d: None, lambda _t: None)
    with pytest.raises(DataError, match="file not found"):
        evaluate(opened, Choices(data=(tmp_path / "x.jsonl",)), lambda _n, _d: None, lambda _t: None)


def test_a_run_is_evaluated_on_its_own_validation_rows(opened: Opened, tmp_path: Path) -> None:
    words = ["好", "ok", "no", "是的"] * 100
    file = tmp_path / "train 训练.jsonl"
    rows = [{"prompt": f"{number}: say {word}", "completion": word} for number, word in enumerate(words)]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    run = opened.home.runs / "r"
    settings = DataSettings(files=(str(file),), validation=0.3)
    (run / "adapter").mkdir(parents=True)
    prepare(settings, opened.tokenizer, 1, run / "data", 512, lambda _text, _done: None)
    (run / "run.json").write_text(json.dumps({"data": settings.model_dump(mode="json")}), "utf-8")
    opened.adapters["mine"] = run / "adapter"
    notes: list[str] = []
    done = evaluate(opened, Choices(few_shot=1), lambda _n, _d: None, notes.append)
    assert len(done.comparison.rows) == 100 and any("--limit" in note for note in notes)
    assert done.origin == "drawn from the data the adapter was trained on"
    notes.clear()
    evaluate(opened, Choices(data=(file,), few_shot=0, limit=4), lambda _n, _d: None, notes.append)
    assert any("was trained on" in note for note in notes), "scoring the training file is told"


def test_files_are_read_as_the_run_read_its_own(opened: Opened, tmp_path: Path) -> None:
    words = ["好", "ok", "no", "是的"] * 10
    file, held_out, other = (tmp_path / name for name in ("train.csv", "held_out.csv", "other.jsonl"))
    table = "".join(f"{number} me@b.org: say {word},{word}\n" for number, word in enumerate(words))
    file.write_text("frage,antwort\n" + table, "utf-8")
    held_out.write_text("frage,antwort\n" + table.replace(" me@", "x you@"), "utf-8")
    other.write_text("".join(json.dumps({"prompt": f"say {w}", "completion": w}) + "\n" for w in words), "utf-8")
    columns = ("prompt=frage", "completion=antwort")
    settings = DataSettings(files=(str(file),), columns=columns, scrub=("email",))
    run = opened.home.runs / "r"
    (run / "adapter").mkdir(parents=True)
    prepare(settings, opened.tokenizer, 1, run / "data", 512, lambda _text, _done: None)
    (run / "run.json").write_text(json.dumps({"data": settings.model_dump(mode="json")}), "utf-8")
    opened.adapters["mine"] = run / "adapter"
    done = evaluate(opened, Choices(data=(held_out,), few_shot=2), lambda _n, _d: None, lambda _t: None)
    assert len(done.comparison.rows) == 40
    assert done.comparison.rows[0].prompt[0].content == "0x [email]: say 好"
    assert done.origin == "drawn from the data the adapter was trained on"
    plain = evaluate(opened, Choices(data=(other,), few_shot=0, limit=3), lambda _n, _d: None, lambda _t: None)
    assert [row.prompt[0].content for row in plain.comparison.rows] == ["say 好", "say ok", "say no"]
    own = Choices(data=(held_out,), few_shot=0, scrub=("phone",), limit=1)
    assert (
        "you@b.org" in evaluate(opened, own, lambda _n, _d: None, lambda _t: None).comparison.rows[0].prompt[0].content
    )
    with pytest.raises(SpecError, match="cannot be 'promt'"):
        evaluate(opened, Choices(data=(other,), columns=("promt=a",)), lambda _n, _d: None, lambda _t: None)
