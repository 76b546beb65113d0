"""Write the parts of the docs that are made from the code: docs/settings.md, docs/run.schema.json, the tables in methods.md, data.md
and export.md, and from the committed measurements those of methods.md's benchmark.

    .venv/bin/python packaging/make_docs.py            writes them
    .venv/bin/python packaging/make_docs.py --check    exit code 1 where one is out of date (a test calls this)

In a hand-written file the generated part stands between <!-- made: NAME --> and <!-- end --> lines.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from finetune_local.backend import backends
from finetune_local.export.targets import Target, targets
from finetune_local.spec.config_file import run_schema
from finetune_local.spec.tuners import presets
from finetune_local.spec.walk import spec_fields
from finetune_local.system.fields import extra_of, flag_of

DOCS = Path(__file__).resolve().parent.parent / "docs"
GROUPS = {
    "run": "Run",
    "model": "Base model",
    "data": "Data",
    "method": "Method",
    "objective": "Objective",
    "training": "Training",
}

SETTINGS_HEAD = """# Settings

Made by `packaging/make_docs.py` from the fields that also make the command line, `--config` files and `run.json`; do not edit.

The first column is the option of `finetune-local train`; in a `run.toml` the same setting has the name in the second:

```toml
method = { key = "lora", rank = 8 }

[model]
id = "smollm2-135m"

[data]
files = ["my.jsonl"]

[training]
epochs = 3
```

Editors that know JSON schemas complete and check such a file with [run.schema.json](run.schema.json).
"""


def main() -> None:
    """Write or check every generated part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where something is out of date")
    check = parser.parse_args().check
    stale = []
    for path, text in _documents():
        if path.exists() and path.read_text("utf-8") == text:
            continue
        stale.append(path.name)
        if not check:
            path.write_text(text, "utf-8", newline="\n")
    if stale:
        print(f"{'out of date' if check else 'written'}: {', '.join(stale)}")
    sys.exit(1 if check and stale else 0)


def _documents() -> Iterator[tuple[Path, str]]:
    yield DOCS / "settings.md", _settings()
    yield DOCS / "run.schema.json", json.dumps(run_schema(), indent=1, ensure_ascii=False) + "\n"
    sys.path.insert(0, str(DOCS.parent / "benchmarks"))  # scripts, no package
    import methods_report

    measured = methods_report.load()
    if (drawn := methods_report.chart(measured)) is not None:
        yield DOCS / "methods.svg", drawn
    tables: Mapping[str, Callable[[], str]] = {
        "methods": _methods,
        "gaps": _gaps,
        "presets": _presets,
        "targets": _targets,
        "quants": _quants,
        "benchmark": lambda: methods_report.report(measured),
    }
    for path in sorted(DOCS.glob("*.md")):
        text = path.read_text("utf-8")
        if "<!-- made:" in text:
            yield (
                path,
                re.sub(
                    r"<!-- made: (\w+) -->\n.*?<!-- end -->",
                    lambda found: f"<!-- made: {found[1]} -->\n{tables[found[1]]()}<!-- end -->",
                    text,
                    flags=re.DOTALL,
                ),
            )


def _settings() -> str:
    parts = [SETTINGS_HEAD]
    for group, title in GROUPS.items():
        rows = [_row(path, field) for path, field in spec_fields() if extra_of(field).get("group") == group]
        if group == "method":
            rows.insert(0, ("`--method`", "`method.key`", "lora", ", ".join(presets()), "Method; see methods.md."))
        if not rows:
            continue
        parts.append(f"\n## {title}\n\n" + _table(("Option", "In a file", "Default", "Allowed", "What it does"), rows))
    return "".join(parts)


def _row(path: str, field: FieldInfo) -> tuple[str, ...]:
    flag = flag_of(path.rpartition(".")[2], field)
    if _kinds(field) == [bool]:
        flag = f"{flag}`, `--no-{flag.removeprefix('--')}"
    return f"`{flag}`", f"`{path}`", _default(field), _allowed(field), field.description or ""


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is None:
        return "automatic"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return _plain(value)


def _allowed(field: FieldInfo) -> str:
    kinds = _kinds(field)
    if typing.get_origin(kinds[0]) is typing.Literal:
        return ", ".join(map(str, typing.get_args(kinds[0])))
    if typing.get_origin(kinds[0]) is tuple and typing.get_origin(typing.get_args(kinds[0])[0]) is typing.Literal:
        return "several of " + ", ".join(map(str, typing.get_args(typing.get_args(kinds[0])[0])))
    words = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = [
        f"{sign} {_plain(getattr(bound, name))}"
        for bound in field.metadata
        for name, sign in words.items()
        if getattr(bound, name, None) is not None
    ]
    names = {int: "whole number", float: "number", str: "text", bool: "on, off"}
    kind = names.get(kinds[0], "texts" if typing.get_origin(kinds[0]) is tuple else str(kinds[0]))
    return " ".join([kind, *bounds])


def _kinds(field: FieldInfo) -> list[Any]:
    kind: Any = field.annotation
    parts = typing.get_args(kind) if type(None) in typing.get_args(kind) else (kind,)
    return [part for part in parts if part is not type(None)]


def _methods() -> str:
    rows = [(f"[`{m.key}`](methods/{m.key}.md)", m.title, m.summary, _paper(m.paper)) for m in presets().values()]
    return _table(("Method", "Name", "What it does", "Paper"), rows)


def _paper(paper: str) -> str:
    number = paper.removeprefix("arXiv:")
    return f"[{paper}](https://arxiv.org/abs/{number})" if number != paper else paper


def _presets() -> str:
    rows = [
        (f"`{m.key}`", m.tuner, ", ".join(f"`{k}` = {_plain(v)}" for k, v in m.defaults.items()) or "(defaults)")
        for m in presets().values()
    ]
    return _table(("Method", "Tuner", "What the name stands for"), rows)


def _targets() -> str:
    rows = [
        (f"`{one.key}`", one.title, ", ".join(f"`{key}`" for key in one.quant_keys), one.summary, _receivers(one))
        for one in targets().values()
    ]
    return _table(("`--to`", "Name", "`--quant` (the first is the default)", "What it is for", "Opened by"), rows)


def _receivers(target: Target) -> str:
    return ", ".join(receiver.name for receiver in target.receivers) or "read back"


def _quants() -> str:
    quants = {quant.key: quant for target in targets().values() for quant in target.quants}
    return _table(("`--quant`", "What it is for"), [(f"`{q.key}`", q.summary) for q in quants.values()])


def _gaps() -> str:
    where = {"": "everywhere", "cpu": "on a CPU", "cuda": "on CUDA", "metal": "on Metal"}
    rows = [
        (
            name,
            where[gap.device],
            f"`{gap.setting}` = {_plain(gap.value)}",
            gap.reason,
            "refused" if gap.instead is None else _plain(gap.instead),
        )
        for name, backend in sorted(backends().items())
        for gap in backend.gaps()
    ]
    return _table(("Backend", "Where", "Cannot do", "Why", "A preset takes instead"), rows)


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


if __name__ == "__main__":
    main()
