"""Sentences of the core in Chinese: whole, in parts, within each other; and what is no sentence of the core stays as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_local.data.conversation import Rejected
from finetune_local.data.readers.read import read
from finetune_local.gui.i18n.strings import Strings
from finetune_local.gui.i18n.translate import TRIES, _Reading, fit, sentence, templates
from finetune_local.spec.run import parse_spec
from finetune_local.system.errors import SpecError

CHINESE, ENGLISH = Strings("zh"), Strings("en")


@pytest.mark.parametrize(
    ("english", "chinese"),
    [
        ("checking the settings", "正在检查设置"),
        ("training.batch_size = 8 (for 120 rows)", "training.batch_size = 8（按 120 行数据）"),
        ("training.validate_every = 4 (five times in the run)", "training.validate_every = 4（整个运行中五次）"),
        ("backend = torch: it can use cpu", "backend = torch：可以使用 cpu"),
        (
            "there is no method 'lorra'. Did you mean 'lora'? Known methods: lora, dora.",
            "没有“lorra”这种方法。是不是想用“lora”？可用的方法：lora, dora。",
        ),
        (
            "a b.jsonl, line 3: turn 2 of 'messages' (user) is a list, expected a text.",
            "a b.jsonl 第 3 行：'messages' 的第 2 条发言（user）是列表，应为文本。",
        ),
        (
            "orders.jsonl, line 9: it is not JSON: Expecting ',' delimiter at column 7.",
            "orders.jsonl 第 9 行：不是 JSON：第 7 列，应有“,”。",
        ),
        (
            "[[adapters]] number 2 ('b'): --data x.csv: there is no such file in /tmp.",
            "第 2 个 [[adapters]]（“b”）：--data x.csv：/tmp 中没有这个文件。",
        ),
        (
            ("this adapter was made on 'a', and 'b' differs from that in its weights and its tokenizer or chat template. "
            "Give --model the base it was made on."),
            "这个适配器基于“a”，而“b”与其在以下方面不同：权重和分词器或对话模板。请用 --model 指定它所基于的基座。",
        ),
        (
            ("The fine-tune helped: exact match up 40.0 points against the base (95 % interval +20.0 to +60.0). "
            "With 10 rows this is rough: evaluate on more."),
            ("微调有帮助：与基座相比，完全匹配率上升 40.0 个百分点（95% 区间 +20.0 至 +60.0）。"
            "只有 10 行，结果较粗略：请用更多数据评估。"),
        ),
        (
            "no room is left to write /a (3 MB free on its disk). What was saved is intact. Make room, then resume.",
            "磁盘空间不足，无法写入 /a（该磁盘剩余 3 MB）。已保存的内容完好无损。请腾出空间后再继续。",
        ),
        ("/a/b.json: cannot be read ([Errno 13] Permission denied: '/a/b.json').",
         "/a/b.json：无法读取（没有权限（错误 13）：/a/b.json）。"),
    ],
)  # fmt: skip
def test_sentences(english: str, chinese: str) -> None:
    assert sentence(CHINESE, english) == chinese
    assert sentence(ENGLISH, english) == english
    assert fit(english).whole


def test_each_line_by_itself() -> None:
    text = "x.jsonl: no row can be used. The first reasons:\n  x.jsonl, line 1: it is not valid UTF-8. Save the file as UTF-8."
    assert sentence(CHINESE, text) == (
        "x.jsonl：没有一行数据可以使用。前几个原因：\n  x.jsonl 第 1 行：它不是有效的 UTF-8。请把文件另存为 UTF-8。"
    )


def test_what_the_core_really_says(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(
            {"training": {"epochs": -1, "seed": "x", "sceed": 2, "schedule": "up"}, "method": "lora"}, "run.toml"
        )
    lines = str(caught.value).split("\n")
    assert len(lines) == 4 and all(fit(line).whole for line in lines), sentence(CHINESE, str(caught.value))
    file = tmp_path / "it is empty. x: y.jsonl"
    file.write_text('{"messages": []}\n{"prompt": 3}\n[1]\n{"messages": [{"content": "a"}]}\n{', "utf-8")
    reasons = [row.reason for row in read([file]) if isinstance(row, Rejected)]
    assert len(reasons) == 5 and all(fit(reason).whole for reason in reasons), reasons


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "\n\n",
        "Something that no part of the app says; not even this: no. And this? No.",
        "为什么。 因为 {x} 和 %s.",
        "{path}: {",
        "{*reason}",
        "\0\x1b[31m",
        "loss",
        "an object",
        "x" * 100_000,
        "Did you mean '" + "y" * 3000 + "'?",
    ],
)
def test_all_else_stays_as_it_is(text: str) -> None:
    assert sentence(CHINESE, text) == text


def test_what_is_known_is_translated_beside_what_is_not() -> None:
    assert (
        sentence(CHINESE, "  Nobody knows this. Did you mean 'a'? Nor this.")
        == "  Nobody knows this. 是不是想用“a”？Nor this."
    )


@pytest.mark.parametrize(
    "name", ["a: b", "x. y", "it's", "{path} {0}", "loss", "an object", "C:\\目录 1\\a.b", "$1 \\1 %s"]
)
def test_names_are_put_in_as_they_are(name: str) -> None:
    """Also such as could be taken for words of a sentence."""
    for english in (
        f"--data {name}: there is no such file in {name}.",
        f"there is no adapter '{name}'.",
        f"{name} has values that are no numbers (NaN or infinity).",
        f"method 'lora' takes 9 positions for itself, and {name} reads at most 8: no room is left for a text.",
    ):
        found = sentence(CHINESE, english)
        assert found != english and found.replace("：", ": ").count(name) == english.count(name), found


def test_every_template_gives_back_what_it_is_given() -> None:
    for template in templates():
        values = {place: f"n{number}x" for number, place in enumerate(template.places)}
        english, chinese = template.english, template.chinese
        for place, value in values.items():
            english, chinese = (text.replace("{" + place + "}", value) for text in (english, chinese))
        found = template.values(english)
        assert found is not None and template.filled(found) == chinese


def test_a_hostile_line_ends_after_so_many_tries() -> None:
    line = ("is , but '. it : has no content. is empty. " * 60)[:1999]
    reading = _Reading(line)
    reading.taken_apart(line, 3, inside=False)
    assert TRIES < reading.tries < 2 * TRIES  # all of it would be hundreds of times as many
    usual = _Reading("a.jsonl, line 3: it is not JSON: Extra data at column 4.")
    usual.taken_apart("a.jsonl, line 3: it is not JSON: Extra data at column 4.", 3, inside=False)
    assert usual.tries < 200


def test_few_templates_are_compared_with_a_line() -> None:
    """Those that have their longest words in it: so a page of sentences costs milliseconds."""
    for template in templates()[::10]:
        assert len(_Reading(template.english)._near) < 40
    assert len(_Reading("Something that no part of the app says.")._near) < 5
