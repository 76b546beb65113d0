"""The verbs generate, chat, evaluate and adapters as a user calls them, on each backend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from conforming import log_softmax
from finetune_local.backend import Backend
from finetune_local.cli.main import cli
from finetune_local.data.conversation import Message
from finetune_local.data.tokenizers.tokenizer import Tokenizer
from finetune_local.system import paths
from finetune_local.system.errors import SpecError
from made import made_adapter


@pytest.fixture
def stocked(home: paths.Home, tiny: Path) -> paths.Home:
    for number, name in enumerate(("formal", "诗人")):
        made_adapter(tiny, home.adapters / name, seed=number)
    return home


def call(*arguments: str, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(cli, list(arguments), input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def said(*arguments: str, stdin: str | None = None) -> list[Any]:
    """Every line of stdout as JSON."""
    return [json.loads(line) for line in call(*arguments, "--json", stdin=stdin).stdout.splitlines()]


def test_generate(backend: Backend, stocked: paths.Home, tiny: Path) -> None:
    common = ("generate", "--backend", backend.name, "--model", str(tiny), "--temperature", "0", "--max-tokens", "9")
    (base,) = said(*common, "--prompt", "你好 Ada")
    assert set(base) >= {"text", "prompt_tokens", "tokens", "seconds"} and base["tokens"] <= 9
    (tuned,) = said(*common, "--prompt", "你好 Ada", "--adapter", "诗人")
    assert tuned["text"] != base["text"] and tuned["prompt_tokens"] == base["prompt_tokens"]
    (piped,) = said(*common, "--prompt", "-", stdin="你好 Ada")
    assert piped["text"] == base["text"]
    (raw,) = said(*common, "--prompt", "你好 Ada", "--raw")
    assert raw["prompt_tokens"] < base["prompt_tokens"]
    (system,) = said(*common, "--prompt", "你好 Ada", "--system", "Be brief.")
    assert system["prompt_tokens"] > base["prompt_tokens"]
    assert call(*common, "--prompt", "Ada").stdout.endswith("\n")
    with pytest.raises(SpecError, match="--system"):
        call(*common, "--prompt", "Ada", "--raw", "--system", "x")
    with pytest.raises(SpecError, match="prompt is empty"):
        call(*common, "--prompt", "", "--raw")


def test_chat_over_a_pipe_swaps_adapters_and_goes_on_later(backend: Backend, stocked: paths.Home, tiny: Path) -> None:
    talk = ("chat", "--backend", backend.name, "--seed", "1", "--max-tokens", "8")
    lines = "你好\n/adapter formal\nand you?\n\n/undo\n/system 简短\n/set temperature 0\nagain\n"
    first, second, third = said(*talk, "--model", str(tiny), "--adapter", "诗人", stdin=lines)
    assert [a["adapter"] for a in (first, second, third)] == ["诗人", "formal", "formal"]
    assert second["prompt_tokens"] > first["prompt_tokens"]
    (listed,) = said("chat", "--list")
    assert [(c["turns"], c["first"]) for c in listed] == [(4, "你好")]
    for way in (["--continue"], ["--continue", listed[0]["id"]]):
        (resumed,) = said(*talk, *way, stdin="one more\n")
        assert resumed["adapter"] == "formal" and resumed["prompt_tokens"] > third["prompt_tokens"]
    assert said("chat", "--list")[0][0]["turns"] == 8


def test_chat_compares_side_by_side(backend: Backend, stocked: paths.Home, tiny: Path) -> None:
    common = ("chat", "--backend", backend.name, "--adapter", "formal", "--compare", "--seed", "1", "--max-tokens", "8")
    both = (*common, "--model", str(tiny))
    (answers,) = said(*both, stdin="hello\n")
    assert [a["adapter"] for a in answers["answers"]] == [None, "formal"]
    assert answers["answers"][0]["text"] != answers["answers"][1]["text"]
    plain = call(*both, stdin="hello\n").stdout
    assert plain.index("[base]") < plain.index("[formal]")
    with pytest.raises(SpecError, match="--adapter"):
        call("chat", "--backend", backend.name, "--model", str(tiny), "--compare", stdin="")


def test_a_wrong_command_in_a_script_stops_it(backend: Backend, stocked: paths.Home, tiny: Path) -> None:
    with pytest.raises(SpecError, match="/adapter"):
        call("chat", "--backend", backend.name, "--model", str(tiny), stdin="/adaptr formal\nhello\n")


def test_evaluate(backend: Backend, stocked: paths.Home, tiny: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "held out 留出.jsonl", tmp_path / "answers.jsonl"
    rows = [{"prompt": f"Ada 要 {i} 杯茶", "completion": f"Ad{i}-茶"} for i in range(9)]
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    common = ("evaluate", "--backend", backend.name, "--model", str(tiny), "--data", str(data), "--max-tokens", "6")
    (result,) = said(*common, "--adapter", "formal", "--few-shot", "2", "--out", str(out))
    assert result["rows"] == 7 and result["examples"] == 2
    for name in ("base", "few_shot", "tuned"):
        assert set(result[name]) == {"loss", "loss_interval", "exact", "contains", "f1"}
        assert result[name]["loss_interval"]["low"] <= result[name]["loss"] <= result[name]["loss_interval"]["high"]
    assert result["base"]["loss"] != result["tuned"]["loss"]
    answers = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert len(answers) == 7 and {"base", "few_shot", "tuned", "reference"} <= set(answers[0])
    (alone,) = said(*common, "--few-shot", "0", "--limit", "4")
    assert alone["rows"] == 4 and alone["tuned"] is None and alone["few_shot"] is None
    shown = call(*common, "--adapter", "formal", "--few-shot", "2").stdout
    assert "base + 2 examples" in shown and "95 % interval" in shown


def test_the_loss_evaluated_is_the_mean_over_the_references_tokens(
    backend: Backend, tiny: Path, tmp_path: Path
) -> None:
    """Against the session's own logits, read one row at a time."""
    data = tmp_path / "rows.jsonl"
    rows = [{"prompt": "你好 " * i, "completion": "ok " * (3 * i)} for i in range(1, 5)]
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    (result,) = said(
        "evaluate", "--backend", backend.name, "--model", str(tiny), "--data", str(data), "--max-tokens", "1",
        "--few-shot", "0", "--home", str(tmp_path),
    )  # fmt: skip
    session, tokenizer = backend.load(tiny, "fp32"), Tokenizer.load(tiny)
    total, count = 0.0, 0
    for row in rows:
        chosen = [Message("user", row["prompt"]), Message("assistant", row["completion"])]
        prompt = tokenizer.prompt_ids(chosen[:1])
        ids = [i for piece, _ in tokenizer.segments(chosen) for i in piece]
        end = max(i for i, token in enumerate(ids) if token in tokenizer.stop_ids) + 1
        scores = log_softmax(session.logits(ids[:end]))
        total -= sum(float(scores[at - 1, ids[at]]) for at in range(len(prompt), end))
        count += end - len(prompt)
    assert result["base"]["loss"] == pytest.approx(total / count, abs=1e-3)


def test_adapters_from_list_to_restore(stocked: paths.Home, tiny: Path, tmp_path: Path) -> None:
    made_adapter(tiny, tmp_path / "new one", seed=5)
    (entry,) = said("adapters", "import", str(tmp_path / "new one"), "--name", "新的")
    assert entry["name"] == "新的"
    said("adapters", "note", "新的", "for orders")
    said("adapters", "rename", "新的", "订单")
    (listed,) = said("adapters", "list")
    assert {e["name"]: e["note"] for e in listed} == {"formal": "", "诗人": "", "订单": "for orders"}
    (info,) = said("adapters", "info", "订单")
    assert info["parameters"] > 1000 and info["settings"]["rank"] == 2
    said("adapters", "remove", "订单")
    assert len(said("adapters")[0]) == 2
    (restored,) = said("adapters", "restore")
    assert restored["name"] == "订单"
    assert "订单" in call("adapters").stdout
