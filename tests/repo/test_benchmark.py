"""The side-by-side table and chart of docs/methods.md are those of the committed lines, and say what was not measured."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from finetune_local.backend import backends
from finetune_local.spec.tuners import presets

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))  # scripts, no package

import methods_report  # noqa: E402
from scatter import LETTER, MARK, Axis, Mark, draw, overlap, place_labels, ticks  # noqa: E402

MEASURED = methods_report.load()
SVG = "{http://www.w3.org/2000/svg}"


def line(method: str, backend: str = "torch", **changed: Any) -> dict[str, Any]:
    return {
        "method": method, "backend": backend, "trainable_parameters": 4_884_480, "adapter_bytes": 19_600_000,
        "memory_expected_bytes": 2_100_000_000, "peak_memory_bytes": 2_300_000_000, "seconds": 81.4, "cpu_seconds": 150.2,
        "learning_rate": 1.3e-3, "loss_before": 2.9114, "loss_after": 0.1062, "exact_before": 0.0, "exact_after": 0.825,
        "rows": 120, "held_out_rows": 40, "date": "2026-11-22",
        "machine": {"cpu": "Some CPU", "processors": 2, "memory_bytes": 25_000_000_000, "system": "Linux", "python": "3.11.7",
                    "libraries": {"torch": "2.13.0"}},
        "setup": {"model": "smollm2-135m", "data": "orders.jsonl", "steps": 40, "batch_size": 8, "seed": 42,
                  "precision": "fp32", "threads": 2},
    } | changed  # fmt: skip


def written(folder: Path, *lines: dict[str, Any]) -> Any:
    text = "".join(json.dumps(one) + "\n" for one in lines)
    (folder / "methods-some-cpu.jsonl").write_text(text, "utf-8")
    return methods_report.load(folder)


def test_the_page_shows_the_committed_lines() -> None:
    page = (ROOT / "docs" / "methods.md").read_text("utf-8")
    found = re.search(r"<!-- made: benchmark -->\n(.*?)<!-- end -->", page, re.DOTALL)
    assert found and found[1] == methods_report.report(MEASURED), "run: python benchmarks/methods.py --report"
    drawn, picture = methods_report.chart(MEASURED), ROOT / "docs" / "methods.svg"
    assert drawn == (picture.read_text("utf-8") if picture.exists() else None), (
        "run: python benchmarks/methods.py --report"
    )


def test_committed_lines_are_of_one_setup_and_name_no_place() -> None:
    for name, lines in MEASURED.items():
        assert all(one["setup"] == lines[0]["setup"] for one in lines)
        assert all({"date", "machine", "app_version"} <= set(one) for one in lines)
        text = (methods_report.RESULTS / name).read_text("utf-8")
        assert not re.search(r"/(work|tmp|home|Users)/", text), f"{name}: a message names a folder of one machine"


def test_each_method_and_backend_has_a_row(tmp_path: Path) -> None:
    files = written(
        tmp_path, line("lora"), line("full", error="OutOfMemory", message="no | room\nat all"), line("gone")
    )
    text = methods_report.report(files)
    rows = {
        tuple(cell.strip() for cell in row.split("|")[1:3]): row for row in text.splitlines() if row.startswith("| `")
    }
    assert len(rows) == len(presets()) * len(backends())
    assert rows["`lora`", "PyTorch"] == (
        "| `lora` | PyTorch | 4,884,480 | 20 MB | 2.1 GB | 2.3 GB | 81 | 150 | 1.3e-03 | 2.911 → 0.106 | 0% → 82% |"
    )
    assert "| not measured |" in rows["`lora`", "MLX"] and "| failed |" in rows["`full`", "PyTorch"]
    assert "- `full` on PyTorch: OutOfMemory: at all" in text and "gone" not in text
    for fact in (
        "smollm2-135m",
        "40 steps of 8 rows",
        "120 rows",
        "40 held out",
        "Some CPU",
        "2 threads",
        "2026-11-22",
        "torch 2.13.0",
    ):
        assert fact in text


def test_the_newest_line_counts(tmp_path: Path) -> None:
    text = methods_report.report(written(tmp_path, line("lora", seconds=500), line("dora"), line("lora", seconds=7)))
    assert "| 7 |" in text and "| 500 |" not in text


def test_nothing_measured_is_said(tmp_path: Path) -> None:
    assert "Nothing has been measured" in methods_report.report(methods_report.load(tmp_path))
    assert methods_report.chart({}) is None
    only_failed = written(tmp_path, line("lora", error="X", message="y"))
    assert methods_report.chart(only_failed) is None and "![" not in methods_report.report(only_failed)


def test_the_chart_has_a_mark_for_each_method_of_one_backend(tmp_path: Path) -> None:
    files = written(tmp_path, line("lora"), line("full", trainable_parameters=134_515_008), line("dora", "mlx"))
    picture = ElementTree.fromstring(methods_report.chart(files) or "")
    titles = [title.text for title in picture.iter(SVG + "title")]
    words = [text.text for text in picture.iter(SVG + "text")]
    assert sorted(filter(None, titles)) == ["full", "full", "lora", "lora"]
    assert words.count("lora") == 2 and "dora" not in words and "base model" in words
    assert {"1M", "10M", "100M"} & set(words)
    style = next(picture.iter(SVG + "style")).text or ""
    assert "prefers-color-scheme: dark" in style


def crowd(number: int) -> tuple[list[tuple[float, float]], list[str]]:
    """Marks on three spots, as methods of equal size and nearly equal loss are."""
    places = [(100.0 + 150 * (i % 3) + i / 10, 200.0 + i % 5) for i in range(number)]
    return places, [f"a-method-{i}" for i in range(number)]


def test_labels_cover_neither_each_other_nor_a_mark() -> None:
    places, labels = crowd(30)
    area = (60.0, 40.0, 540.0, 460.0)
    boxes = place_labels(places, labels, area)
    for i, box in enumerate(boxes):
        assert box[2] - box[0] == pytest.approx(len(labels[i]) * LETTER)
        assert area[0] <= box[0] and area[1] <= box[1] and box[2] <= area[2] and box[3] <= area[3]
        assert not any(overlap(box, other) for other in boxes[i + 1 :])
        assert not any(overlap(box, (x - MARK, y - MARK, x + MARK, y + MARK)) for x, y in places)


def test_a_label_does_not_cover_what_is_reserved() -> None:
    (free,) = place_labels([(100.0, 100.0)], ["lora"], (0.0, 0.0, 200.0, 200.0))
    (moved,) = place_labels([(100.0, 100.0)], ["lora"], (0.0, 0.0, 200.0, 200.0), [free])
    assert not overlap(free, moved)


def test_an_area_that_is_too_full_is_refused() -> None:
    with pytest.raises(ValueError, match="no room for the label"):
        place_labels(*crowd(30), (60.0, 180.0, 540.0, 230.0))


def test_words_are_escaped_and_one_mark_is_enough() -> None:
    text = draw([Mark("a<b>&", "g", (5.0,), 2.0)], [Axis("x & y")], Axis("z"), title='"t" <1>')
    words = [element.text for element in ElementTree.fromstring(text).iter(SVG + "text")]
    assert "a<b>&" in words and "x & y" in words


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.08, 3.5, [0.1, 0.2, 0.5, 1, 2]),
        (9e3, 2e8, [1e4, 1e5, 1e6, 1e7, 1e8]),
        (45, 220, [50, 100, 200]),
        (4.4, 7.3, [5, 6, 7]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)
