"""The table and the chart of docs/methods.md, made from the committed lines of benchmarks/results/methods-*.jsonl.

packaging/make_docs.py writes them, so a test sees when they are not what the lines say.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scatter import Axis, Mark, draw

from finetune_local.backend import backends
from finetune_local.cli.common import megabytes
from finetune_local.spec.tuners import presets

RESULTS = Path(__file__).resolve().parent / "results"
HEAD = ("Method", "Backend", "Trained", "Adapter", "Memory foreseen", "Peak", "Seconds", "CPU seconds", "Rate",
        "Held-out loss", "Exact match")  # fmt: skip
NAMES = {"torch": "PyTorch", "mlx": "MLX"}

Line = Mapping[str, Any]


def load(folder: Path = RESULTS) -> dict[str, list[Line]]:
    """The lines of each file by its name; of several for one method and backend the newest."""
    found: dict[str, list[Line]] = {}
    for path in sorted(folder.glob("methods-*.jsonl")):
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        found[path.name] = list({(line["method"], line["backend"]): line for line in lines}.values())
    return found


def report(files: Mapping[str, Sequence[Line]], picture: str = "methods.svg") -> str:
    """Markdown: for each file the setup and the machine, and a row for each method and backend."""
    shown = {name: lines for name, lines in files.items() if lines}
    if not shown:
        return "Nothing has been measured yet: `python benchmarks/methods.py`\n"
    best = _fullest(shown)
    drawn = f"![{_caption(shown[best])}]({picture})\n\n" if _finished(shown[best]) else ""
    return drawn + "\n".join(_section(name, lines) for name, lines in shown.items())


def chart(files: Mapping[str, Sequence[Line]]) -> str | None:
    """SVG: held-out loss against trained parameters and against CPU-seconds, a mark for each method on the backend with the most."""
    shown = {name: lines for name, lines in files.items() if lines}
    if not shown or not _finished(shown[_fullest(shown)]):
        return None
    lines = shown[_fullest(shown)]
    marks = [
        Mark(line["method"], presets()[line["method"]].tuner,
             (line["trainable_parameters"], max(line["cpu_seconds"], 0.1)), line["loss_after"])
        for line in _finished(lines)
    ]  # fmt: skip
    base = next(iter(_finished(lines)))["loss_before"]
    return draw(
        marks,
        (Axis("trained parameters"), Axis("CPU-seconds of training")),
        Axis("held-out loss after training"),
        title=_caption(lines),
        level=(base, "base model"),
    )


def _section(name: str, lines: Sequence[Line]) -> str:
    known = {(line["method"], line["backend"]): line for line in lines}
    rows = [_row(key, backend, known.get((key, backend))) for key in presets() for backend in sorted(backends())]
    table = "".join("| " + " | ".join(row) + " |\n" for row in [HEAD, ("---",) * len(HEAD), *rows])
    failures = [
        f"- `{line['method']}` on {_backend(line['backend'])}: {line['error']}: {_short(line['message'])}\n"
        for line in lines
        if "error" in line and line["method"] in presets()
    ]
    listed = "\nWhat failed:\n\n" + "".join(sorted(failures)) if failures else ""
    return f"{_setup(name, lines)}\n\n{table}{listed}"


def _row(key: str, backend: str, line: Line | None) -> tuple[str, ...]:
    start = (f"`{key}`", _backend(backend))
    if line is None or "error" in line:
        return (*start, "not measured" if line is None else "failed", *("",) * (len(HEAD) - 3))
    return (
        *start,
        f"{line['trainable_parameters']:,}",
        megabytes(line["adapter_bytes"]),
        megabytes(line["memory_expected_bytes"]),
        megabytes(line["peak_memory_bytes"]),
        f"{line['seconds']:.0f}",
        f"{line['cpu_seconds']:.0f}",
        f"{line['learning_rate']:.1e}",
        f"{line['loss_before']:.3f} → {line['loss_after']:.3f}",
        f"{line['exact_before']:.0%} → {line['exact_after']:.0%}",
    )


def _setup(name: str, lines: Sequence[Line]) -> str:
    setup, machine = lines[0]["setup"], lines[0]["machine"]
    rows = next(({"rows": x["rows"], "held": x["held_out_rows"]} for x in lines if "rows" in x), None)
    libraries: dict[str, set[str]] = {}
    for line in lines:
        for library, version in line["machine"]["libraries"].items():
            libraries.setdefault(library, set()).add(version)
    versions = ", ".join(f"{library} {'/'.join(sorted(found))}" for library, found in sorted(libraries.items()))
    dates = sorted({line["date"] for line in lines})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    learned = (
        f"{rows['rows']} rows of `{setup['data']}` to learn from, {rows['held']} held out" if rows else setup["data"]
    )
    return (
        f"`{setup['model']}`, {setup['steps']} steps of {setup['batch_size']} rows, {learned}, seed {setup['seed']}, the base in "
        f"{setup['precision']} where the method's name says nothing else, every other setting automatic. "
        f"{machine['cpu']}, {_counted(machine['processors'], 'processor')}, {_counted(setup['threads'], 'thread')}, "
        f"{megabytes(machine['memory_bytes'])} of memory, {machine['system']}, {when}; Python {machine['python']}, {versions}. "
        f"Lines: [benchmarks/results/{name}](../benchmarks/results/{name})."
    )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _fullest(files: Mapping[str, Sequence[Line]]) -> str:
    return max(files, key=lambda name: (len(_finished(files[name])), name))


def _finished(lines: Sequence[Line]) -> list[Line]:
    """Those that came to an end, of methods there are, on the backend with the most."""
    good = [line for line in lines if "error" not in line and line["method"] in presets()]
    count = Counter(line["backend"] for line in good)
    most = max(count, key=lambda name: (count[name], name), default=None)
    return sorted((line for line in good if line["backend"] == most), key=lambda line: str(line["method"]))


def _caption(lines: Sequence[Line]) -> str:
    chosen = _finished(lines) or list(lines)
    return (
        f"Held-out loss of {chosen[0]['setup']['model']} after {chosen[0]['setup']['steps']} steps, "
        f"{_backend(chosen[0]['backend'])} on {chosen[0]['machine']['cpu']}"
    )


def _backend(name: str) -> str:
    return NAMES.get(name, name)


def _short(message: str) -> str:
    """The last line of a message, which for a traceback says what it was, fit for a list."""
    line = message.strip().splitlines()[-1] if message.strip() else ""
    return line if len(line) <= 300 else line[:299] + "…"
