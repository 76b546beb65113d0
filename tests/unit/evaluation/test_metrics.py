"""Text comparison in English and Chinese."""

import pytest

from finetune_local.evaluation.metrics import compare_texts, tokens
from finetune_local.evaluation.metrics.contains import contains
from finetune_local.evaluation.metrics.exact import exact
from finetune_local.evaluation.metrics.f1 import f1


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        (" Paris\n", "Paris", 1.0),
        ("paris", "Paris", 0.0),
        ("cafe\u0301", "caf\u00e9", 1.0),  # NFC: the accent apart and together
        ("巴黎。", "巴黎", 0.0),
    ],
)
def test_exact(answer: str, reference: str, same: float) -> None:
    assert exact(answer, reference) == same


def test_contains_looks_for_the_reference_in_the_answer() -> None:
    assert contains("The capital is Paris.", "Paris") == 1.0
    assert contains("Paris", "The capital is Paris.") == 0.0
    assert contains("首都是巴黎。", "巴黎") == 1.0


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("the cat sat", "A cat sat!", 1.0),  # articles, case and punctuation do not count
        ("cat sat", "cat sat on the mat", 2 * 2 / (2 + 4)),
        ("cat cat cat", "cat", 2 * 1 / (3 + 1)),  # a word counts as often as it is wanted
        ("法国的首都是巴黎", "首都是巴黎。", 2 * 5 / (8 + 5)),
        ("我喜欢 Python 3", "我喜欢Python 3", 1.0),
        ("dog", "cat", 0.0),
        ("", "cat", 0.0),
        ("!!!", "!!!", 1.0),
        ("!!!", "???", 0.0),
    ],
)
def test_f1(answer: str, reference: str, expected: float) -> None:
    assert f1(answer, reference) == pytest.approx(expected)


def test_scripts_without_spaces_are_split_by_character() -> None:
    assert tokens("我们去公园 by bus，好吗？") == ["我", "们", "去", "公", "园", "by", "bus", "好", "吗"]
    assert tokens("ありがとう") == list("ありがとう")
    assert tokens("한국어 문장") == ["한국어", "문장"]


def test_all_metrics_together() -> None:
    assert compare_texts("Paris", "Paris") == {"exact": 1.0, "contains": 1.0, "f1": 1.0}
