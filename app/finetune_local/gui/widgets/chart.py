"""Line charts, drawn as SVG on the server. app.js shows the values under the mouse.

chart([Line("loss", [(1, 2.3), (2, 2.1)])], f, label="Loss", x_name="step") returns a chart. Colours are numbered from 1 to 6. A Line may
have a band (the lowest and highest value at each x), be thin (raw values behind a smoothed line), or consist of dots.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from finetune_local.gui.i18n.formats import Formats
from finetune_local.gui.widgets.html import Html, h

MOST_POINTS = 400
MOST_TIPS = 240
SIZE = 1000  # width and height in SVG units, stretched over the box


@dataclass(frozen=True)
class Line:
    """One curve. `points` are (x, y), sorted by x; `band` are (x, low, high). Values that are not finite leave a gap."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 1
    style: Literal["line", "thin", "dots"] = "line"
    band: Sequence[tuple[float, float, float]] = field(default=())
    in_legend: bool = True


def chart(
    lines: Sequence[Line],
    f: Formats,
    *,
    label: str,
    x_name: str,
    x_end: float | None = None,
    digits: int = 3,
    small: bool = False,
    waiting: str = "",
    y_text: Callable[[float], str] | None = None,
) -> Html:
    """A chart as HTML.

    `label` is its name for screen readers; `x_end` the end of the x axis, which may lie beyond the last value; `waiting` the text shown
    while there are no values. `y_text` formats a value; by default it is a number with `digits` decimals.
    """
    lines = [Line(x.name, thinned(x.points), x.colour, x.style, thinned(x.band), x.in_legend) for x in lines]
    ys = [y for line in lines for _, y in line.points] + [y for line in lines for _, *both in line.band for y in both]
    ys = [y for y in ys if math.isfinite(y)]
    xs = [x for line in lines for x, *_ in line.points]
    left, right = min(xs, default=0.0), max([*xs, x_end or 0.0], default=1.0)
    right = right if right > left else left + 1
    low, high = _span(ys)
    written = y_text or (lambda y: f.number(y, digits))

    def place_x(x: float) -> float:
        return (x - left) / (right - left)

    def place_y(y: float) -> float:
        return (high - y) / (high - low)

    ticks = nice(low, high, 3 if small else 5)
    drawn = [h("line", x1="0", x2=SIZE, y1=_n(place_y(y)), y2=_n(place_y(y)), class_="gridline") for y in ticks]
    drawn += [part for line in lines for part in _drawn(line, place_x, place_y)]
    return h(
        "figure",
        h(
            "div",
            [h("span", written(y), class_="y", style=f"top:{100 * place_y(y):.2f}%;left:-54px") for y in ticks],
            h("svg", drawn, viewBox=f"0 0 {SIZE} {SIZE}", preserveAspectRatio="none", aria_hidden="true"),
            _dots(lines, place_x, place_y),
            h("span", class_="cross"),
            h("span", class_="tip"),
            h("span", waiting, class_="waiting") if not ys and waiting else None,
            class_="plot",
            data_points=_tips(lines, place_x, x_name, f, written),
        ),
        h("div", [h("span", f.number(x)) for x in _marks(left, right)], class_="x"),
        _legend(lines, x_name),
        class_="chart small" if small else "chart",
        role="img",
        aria_label=f"{label}. {_spoken(lines, written)}",
    )


def thinned(points: Sequence[tuple[float, ...]], most: int = MOST_POINTS) -> list:  # type: ignore[type-arg]
    """At most `most` of the points, evenly spaced, with the first and the last. Curves of runs are thinned before (run_folder/watch.py)."""
    if len(points) <= most:
        return list(points)
    step = (len(points) - 1) / (most - 1)
    return [points[round(i * step)] for i in range(most)]


def nice(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers between `low` and `high`."""
    raw = (high - low) / max(1, count)
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _span(ys: Sequence[float]) -> tuple[float, float]:
    if not ys:
        return 0.0, 1.0
    low, high = min(ys), max(ys)
    room = (high - low) * 0.06 or max(abs(high) * 0.05, 1e-6)
    return (max(0.0, low - room) if low >= 0 else low - room), high + room


def _n(share: float) -> str:
    return f"{SIZE * share:.1f}"


def _drawn(line: Line, x: Callable[[float], float], y: Callable[[float], float]) -> list[Html]:
    parts = []
    if len(line.band) > 1:
        upper = [f"{_n(x(at))},{_n(y(high))}" for at, _, high in line.band]
        lower = [f"{_n(x(at))},{_n(y(low))}" for at, low, _ in reversed(line.band)]
        parts.append(h("path", d="M" + "L".join([*upper, *lower]) + "Z", class_=f"band c{line.colour}"))
    if line.style == "dots":
        return parts
    runs: list[list[str]] = [[]]
    for at, value in line.points:
        if math.isfinite(value):
            runs[-1].append(f"{_n(x(at))},{_n(y(value))}")
        elif runs[-1]:
            runs.append([])
    kind = "line thin" if line.style == "thin" else "line"
    return parts + [h("polyline", points=" ".join(run), class_=f"{kind} c{line.colour}") for run in runs if run]


def _dots(lines: Sequence[Line], place_x: Callable[[float], float], place_y: Callable[[float], float]) -> list[Html]:
    """Dots as elements over the SVG, which would stretch them."""
    return [
        h("span", class_=f"dot c{line.colour}", style=f"left:{100 * place_x(x):.2f}%;top:{100 * place_y(y):.2f}%")
        for line in lines
        if line.style == "dots"
        for x, y in line.points
        if math.isfinite(y)
    ]


def _tips(
    lines: Sequence[Line], x: Callable[[float], float], x_name: str, f: Formats, written: Callable[[float], str]
) -> str:
    """The texts that app.js shows under the mouse, as JSON: x from 0 to 1, and a text for each."""
    longest = max(lines, key=lambda line: len(line.points), default=None)
    if longest is None:
        return json.dumps({"x": [], "tips": []})
    places, texts = [], []
    for at, *_ in thinned(longest.points, MOST_TIPS):
        text = [f"{x_name} {f.number(at)}"]
        for line in lines:
            if line.in_legend and line.points:
                near = min(line.points, key=lambda point: abs(point[0] - at))
                text.append(f"{line.name}  {written(near[1])}")
        places.append(round(x(at), 4))
        texts.append("\n".join(text))
    return json.dumps({"x": places, "tips": texts}, ensure_ascii=False)


def _legend(lines: Sequence[Line], x_name: str) -> Html:
    shown = [h("span", h("i", class_=f"c{line.colour}"), line.name) for line in lines if line.in_legend]
    return h("div", shown, h("span", x_name, class_="x-name"), class_="legend")


def _marks(left: float, right: float) -> list[float]:
    return [round(left + (right - left) * i / 4) for i in range(5)] if right - left >= 4 else [left, right]


def _spoken(lines: Sequence[Line], written: Callable[[float], str]) -> str:
    """The first and last value of each curve, for screen readers."""
    values = [
        f"{line.name}: {written(line.points[0][1])} → {written(line.points[-1][1])}"
        for line in lines
        if line.points and line.in_legend
    ]
    return "; ".join(values)
