"""A small SVG writer: panels side by side with logarithmic axes and one vertical axis in common; labels that do not overlap.

The picture has a background of its own and follows the reader's light or dark scheme.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

WIDTH, HEIGHT = 1080, 560
LEFT, RIGHT, TOP, BOTTOM, BETWEEN = 58, 16, 44, 92, 34
MARK, LETTER, LINE = 4.5, 6.3, 13.0
"""Radius of a mark; width of a letter and height of a line of the labels, a little more than they need; all in pixels."""

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#999933", "#882255", "#777777")
STYLE = """
text { font: 11px system-ui, sans-serif; fill: #1f2328 } .soft { fill: #59636e } .title { font-size: 13px; font-weight: 600 }
.back { fill: #ffffff } .grid { stroke: #d1d9e0; stroke-width: 1 } .lead { stroke: #818b98; stroke-width: 0.7 }
.level { stroke: #59636e; stroke-dasharray: 4 3 }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc } .soft { fill: #9198a1 } .back { fill: #0d1117 } .grid { stroke: #3d444d } .lead { stroke: #818b98 }
  .level { stroke: #9198a1 }
}
"""

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Axis:
    """A logarithmic axis by its words."""

    title: str


@dataclass(frozen=True)
class Mark:
    """One thing: its label, the group that gives its colour, its place in each panel and on the common axis; all above zero."""

    label: str
    group: str
    across: tuple[float, ...]
    up: float


@dataclass(frozen=True)
class Scale:
    """Where values from `low` to `high` lie between the pixels `start` and `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return self.start + share * (self.end - self.start)


def draw(
    marks: Sequence[Mark], across: Sequence[Axis], up: Axis, *, title: str, level: tuple[float, str] | None = None
) -> str:
    """The picture; `level` is a line across all panels with its words."""
    values = [mark.up for mark in marks] + ([level[0]] if level else [])
    vertical = _scale(values, HEIGHT - BOTTOM, TOP)
    groups = list(dict.fromkeys(mark.group for mark in sorted(marks, key=lambda mark: mark.group)))
    colour = {group: COLOURS[number % len(COLOURS)] for number, group in enumerate(groups)}
    width = (WIDTH - LEFT - RIGHT - BETWEEN * (len(across) - 1)) / len(across)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label={quoteattr(title)}>',
        f"<style>{STYLE}</style>",
        f'<rect class="back" width="{WIDTH}" height="{HEIGHT}"/>',
        _text(LEFT, 20, title, "title"),
    ]
    for number, axis in enumerate(across):
        start = LEFT + number * (width + BETWEEN)
        area: Box = (start, TOP, start + width, HEIGHT - BOTTOM)
        horizontal = _scale([mark.across[number] for mark in marks], area[0], area[2])
        parts += _grid(area, horizontal, vertical, axis.title, number == 0)
        reserved: list[Box] = []
        if level is not None:
            y = vertical(level[0])
            reserved = [(area[2] - 4 - len(level[1]) * LETTER, y - 4 - LINE, area[2], y)]
            parts.append(f'<line class="level" x1="{area[0]:.1f}" y1="{y:.1f}" x2="{area[2]:.1f}" y2="{y:.1f}"/>')
            parts.append(_text(area[2] - 4, y - 4, level[1], "soft", "end"))
        places = [(horizontal(mark.across[number]), vertical(mark.up)) for mark in marks]
        boxes = place_labels(places, [mark.label for mark in marks], area, reserved)
        parts += _labels(marks, places, boxes)
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{MARK}" fill="{colour[mark.group]}"><title>{escape(mark.label)}</title></circle>'
            for (x, y), mark in zip(places, marks, strict=True)
        ]
    parts.append(f'<text class="soft" transform="translate(14 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" '
                 f'text-anchor="middle">{escape(up.title)}</text>')  # fmt: skip
    return "\n".join([*parts, *_legend(colour), "</svg>"]) + "\n"


def place_labels(
    places: Sequence[tuple[float, float]], labels: Sequence[str], area: Box, reserved: Sequence[Box] = ()
) -> list[Box]:
    """A box for each label, near its mark and inside `area`, that covers no mark, no other label and nothing reserved.

    Each takes the nearest free place, those with the most neighbours last: they can go farther away, with a line to the mark.
    Raises ValueError where the area is too full.
    """
    marks = [(x - MARK - 1, y - MARK - 1, x + MARK + 1, y + MARK + 1) for x, y in places]
    crowd = [sum(math.dist(one, other) < 60 for other in places) for one in places]
    found: dict[int, Box] = {}
    for index in sorted(range(len(places)), key=lambda i: (crowd[i], places[i][1], places[i][0], labels[i])):
        taken = [*marks, *found.values(), *reserved]
        for box in _around(places[index], len(labels[index]) * LETTER, area):
            if not any(overlap(box, other) for other in taken):
                found[index] = box
                break
        else:
            raise ValueError(f"no room for the label {labels[index]!r}")
    return [found[index] for index in range(len(places))]


def overlap(one: Box, other: Box) -> bool:
    """Whether two boxes share a point."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _around(place: tuple[float, float], width: float, area: Box) -> Iterator[Box]:
    """Boxes of one line inside the area, ever farther from a mark: right, left, above and below first."""
    x, y = place
    for step in range(60):
        gap = MARK + 2 + 6 * step
        for turn in range(16):
            angle = math.pi / 8 * ((turn // 2) * (1 if turn % 2 else -1))
            dx, dy = math.cos(angle), math.sin(angle)
            middle = (x + dx * gap + (width / 2) * _sign(dx), y + dy * (gap + LINE / 2))
            box = (middle[0] - width / 2, middle[1] - LINE / 2, middle[0] + width / 2, middle[1] + LINE / 2)
            if area[0] <= box[0] and area[1] <= box[1] and box[2] <= area[2] and box[3] <= area[3]:
                yield box


def _sign(value: float) -> float:
    return 0.0 if abs(value) < 0.2 else math.copysign(1.0, value)


def _labels(marks: Sequence[Mark], places: Sequence[tuple[float, float]], boxes: Sequence[Box]) -> list[str]:
    """Lines first, so that they lie under the words; none where a label stands beside its own mark and no other."""
    lines, words = [], []
    for mark, (x, y), box in zip(marks, places, boxes, strict=True):
        end = _nearest(box, (x, y))
        own = math.dist(end, (x, y))
        others = [math.dist(_nearest(box, place), place) for place in places if place != (x, y)]
        if own > MARK + 4 or min(others, default=math.inf) < own + 1:
            lines.append(f'<line class="lead" x1="{x:.1f}" y1="{y:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}"/>')
        words.append(_text((box[0] + box[2]) / 2, box[3] - 3.2, mark.label, "", "middle"))
    return lines + words


def _nearest(box: Box, place: tuple[float, float]) -> tuple[float, float]:
    """The point of a label's words nearest to a mark."""
    return min(max(place[0], box[0]), box[2]), min(max(place[1], box[1] + 2), box[3] - 2)


def _grid(area: Box, horizontal: Scale, vertical: Scale, title: str, numbered: bool) -> list[str]:
    left, top, right, bottom = area
    parts = []
    for value in ticks(vertical.low, vertical.high):
        y = vertical(value)
        parts.append(f'<line class="grid" x1="{left:.1f}" y1="{y:.1f}" x2="{right:.1f}" y2="{y:.1f}"/>')
        if numbered:
            parts.append(_text(left - 6, y + 4, _number(value), "soft", "end"))
    for value in ticks(horizontal.low, horizontal.high):
        x = horizontal(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{top:.1f}" x2="{x:.1f}" y2="{bottom:.1f}"/>')
        parts.append(_text(x, bottom + 16, _number(value), "soft", "middle"))
    parts.append(_text((left + right) / 2, bottom + 34, title, "soft", "middle"))
    return parts


def ticks(low: float, high: float) -> list[float]:
    """Round numbers between two: powers of ten, else as fine as it takes to have three."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for tenths in ((10,), (10, 20, 50), range(10, 100, 10), range(10, 100, 5), range(10, 100)):
        found = [tenth * 10.0 ** (power - 1) for power in powers for tenth in tenths]
        found = [value for value in found if low <= value <= high]
        if len(found) >= 3:
            break
    return found


def _scale(values: Sequence[float], start: float, end: float) -> Scale:
    """A little more than the values span, and never nothing."""
    low, high = min(values), max(values)
    room = max(1.25, (high / low) ** 0.08)
    return Scale(low / room, high * room, start, end)


def _legend(colour: dict[str, str]) -> list[str]:
    parts, x, y = [], float(LEFT), HEIGHT - 34.0
    for group, shade in colour.items():
        width = 24 + len(group) * LETTER
        if x + width > WIDTH - RIGHT:
            x, y = float(LEFT), y + 18
        parts.append(f'<circle cx="{x + 5:.1f}" cy="{y - 4:.1f}" r="{MARK}" fill="{shade}"/>')
        parts.append(_text(x + 14, y, group, "soft"))
        x += width
    return parts


def _text(x: float, y: float, words: str, kind: str, anchor: str = "start") -> str:
    chosen = f' class="{kind}"' if kind else ""
    return f'<text{chosen} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _number(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
