from __future__ import annotations

import time

import pytest

from finetune_local.gui.i18n.formats import Formats
from finetune_local.gui.i18n.strings import Strings


@pytest.mark.parametrize(
    ("locale", "number", "size", "percent"),
    [
        ("en-US", "1,234.50", "1.5 GB", "34%"),
        ("de-DE", "1.234,50", "1,5 GB", "34 %"),
        ("zh-CN", "1,234.50", "1.5 GB", "34%"),
        ("fr", "1\u202f234,50", "1,5 GB", "34 %"),
        ("nonsense-XX", "1,234.50", "1.5 GB", "34%"),
    ],
)
def test_numbers_are_those_of_the_users_locale(locale: str, number: str, size: str, percent: str) -> None:
    f = Formats(locale, Strings("en"))
    assert f.number(1234.5, 2) == number
    assert f.size(1.5e9) == size
    assert f.percent(0.34).replace("\xa0", " ").replace("\u202f", " ") == percent


def test_what_is_no_number_has_a_name() -> None:
    f = Formats("en", Strings("en"))
    assert [f.number(x) for x in (None, float("nan"), float("inf"), float("-inf"))] == ["–", "NaN", "∞", "–∞"]
    assert f.loss(None) == f.rate(None) == f.size(None) == f.span(None) == f.moment(None) == "–"


@pytest.mark.parametrize(
    ("seconds", "english", "chinese"),
    [
        (5, "5 s", "5 秒"),
        (65, "1 min 05 s", "1 分 05 秒"),
        (7260, "2 h 01 min", "2 小时 01 分"),
        (90000, "1 d 1 h", "1 天 1 小时"),
    ],
)
def test_spans_speak_the_language(seconds: float, english: str, chinese: str) -> None:
    assert Formats("en", Strings("en")).span(seconds) == english
    assert Formats("zh", Strings("zh")).span(seconds) == chinese


def test_a_moment_of_today_is_a_time_and_of_another_day_a_date() -> None:
    f = Formats("de-DE", Strings("en"))
    assert "." not in f.moment(time.time()) and ":" in f.moment(time.time())
    assert f.moment(0).startswith(("01.01.70", "31.12.69"))


@pytest.mark.parametrize(
    ("count", "written"),
    [
        (None, "–"),
        (999, "999"),
        (134_515_008, "135 M"),
        (999_885_952, "1.0 B"),
        (1_711_376_384, "1.7 B"),
        (9_960_000_000, "10 B"),
    ],
)
def test_parameters_are_counted_in_thousands_of_thousands(count: int | None, written: str) -> None:
    assert Formats("en", Strings("en")).parameters(count) == written
