"""Numbers, sizes, dates and durations in the format of the user's locale."""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Callable

from babel import Locale, UnknownLocaleError
from babel.dates import format_datetime, format_time
from babel.numbers import format_decimal, format_percent, format_scientific

Words = Callable[..., str]

_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_DAY = 86400


class Formats:
    """Formats for one locale, which is the browser's ("de-DE"). An unknown one is treated as Chinese or English."""

    def __init__(self, locale: str, words: Words) -> None:
        self._t = words
        try:
            self.locale = Locale.parse(locale, sep="-" if "-" in locale else "_")
        except (UnknownLocaleError, ValueError, TypeError):
            self.locale = Locale.parse("zh_CN" if locale.startswith("zh") else "en")

    def number(self, value: float | None, digits: int = 0) -> str:
        """1,234.57; None is a dash, and values that are not finite are "∞", "–∞" and "NaN"."""
        if value is None:
            return "–"
        if not math.isfinite(value):
            return "∞" if value > 0 else "–∞" if value < 0 else "NaN"
        return format_decimal(value, "#,##0" + ("." + "0" * digits if digits else ""), locale=self.locale)

    def loss(self, value: float | None) -> str:
        """A loss, with four decimals."""
        return self.number(value, 4)

    def rate(self, value: float | None) -> str:
        """A learning rate: 2.0E-4."""
        return "–" if value is None else format_scientific(value, "0.0#E0", locale=self.locale)

    def percent(self, share: float | None, digits: int = 0) -> str:
        """A share from 0 to 1 as a percentage: 34 %."""
        if share is None:
            return "–"
        pattern = str(self.locale.percent_formats[None].pattern)  # the locale places the sign
        if digits:
            pattern = pattern.replace("0", "0." + "0" * digits, 1)
        return format_percent(share, pattern, locale=self.locale)

    def size(self, count: float | None) -> str:
        """A number of bytes: 1.5 GB, 270 MB."""
        if count is None:
            return "–"
        for unit, name in _UNITS:
            if count >= unit:
                value = count / unit
                return f"{self.number(value, 1 if value < 10 else 0)} {name}"
        return f"{self.number(count)} B"

    def parameters(self, count: int | None) -> str:
        """A number of parameters: 135 M, 1.7 B."""
        if not count:
            return "–"
        for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
            if count >= 0.9995 * unit:  # 999.5 thousand rounds to 1 million
                value = count / unit
                return f"{self.number(value, 1 if value < 9.95 else 0)} {name}"
        return self.number(count)

    def span(self, seconds: float | None) -> str:
        """A duration: 45 s, 3 min, 2 h 10 min."""
        if seconds is None or not math.isfinite(seconds):
            return "–"
        whole = round(max(0.0, seconds))
        if whole < 60:
            return self._t("common.seconds", n=self.number(whole))
        if whole < 3600:
            return self._t("common.minutes", n=self.number(whole // 60), seconds=f"{whole % 60:02d}")
        if whole < _DAY:
            return self._t("common.hours", n=self.number(whole // 3600), minutes=f"{whole % 3600 // 60:02d}")
        return self._t("common.days", n=self.number(whole // _DAY), hours=str(whole % _DAY // 3600))

    def about(self, seconds: float | None) -> str:
        """A rough duration: 2 min instead of 1 min 53 s."""
        if seconds is None or not 60 <= seconds < 7200:
            return self.span(seconds)
        return self._t("common.minutes_about", n=self.number(round(seconds / 60)))

    def moment(self, when: float | datetime.datetime | None) -> str:
        """A date and time; only the time if it is today."""
        if when is None:
            return "–"
        at = when if isinstance(when, datetime.datetime) else datetime.datetime.fromtimestamp(when)
        at = at.astimezone().replace(tzinfo=None)
        if at.date() == datetime.date.fromtimestamp(time.time()):
            return format_time(at, "short", locale=self.locale)
        return format_datetime(at, "short", locale=self.locale)
