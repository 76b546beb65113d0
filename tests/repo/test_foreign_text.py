"""JSON and TOML are read by system/untrusted/text.py alone: within limits, and with one error whose message ends a sentence."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
READER = "app/finetune_local/system/untrusted/text.py"
SOURCE = sorted(path for top in ("app", "backends") for path in (ROOT / top).rglob("*.py"))

AFTER_IT = {
    "app/finetune_local/system/untrusted/tensor_header.py": "looks for names given twice, in a text that the guarded reader has read",
}

_BARE = {
    ("json", "load"), ("json", "loads"), ("json", "JSONDecoder"), ("tomllib", "load"), ("tomllib", "loads"),
    ("toml", "load"), ("toml", "loads"), ("yaml", "load"), ("yaml", "safe_load"), ("ijson", "items"), ("ijson", "parse"),
    ("ijson", "basic_parse"), ("ijson", "kvitems"), ("pickle", "load"), ("pickle", "loads"),
}  # fmt: skip


def bare_readers(source: str) -> Iterator[tuple[int, str]]:
    """Where a text is read by a library's own reader, however it was imported."""
    tree = ast.parse(source)
    called: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            called |= {alias.asname or alias.name.partition(".")[0]: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and any((node.module, alias.name) in _BARE for alias in node.names):
            yield node.lineno, f"from {node.module} import ..."
    for node in ast.walk(tree):
        named = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if named and (called.get(node.value.id, ""), node.attr) in _BARE:
            yield node.lineno, f"{node.value.id}.{node.attr}"


def test_it_is_seen_however_it_is_written() -> None:
    source = "import json as j, tomllib\nfrom json import loads\nx = j.loads\ny = tomllib.load(f)\nz = j.dumps(1)\njson.load(f)\n"
    assert sorted(what for _, what in bare_readers(source)) == ["from json import ...", "j.loads", "tomllib.load"]


@pytest.mark.parametrize("path", SOURCE, ids=lambda path: str(path.relative_to(ROOT)))
def test_texts_of_others_are_read_within_limits(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    found = [f"{name}:{line}: {what}" for line, what in bare_readers(path.read_text("utf-8"))]
    if name == READER:
        return
    if name not in AFTER_IT:
        assert found == [], "use system/untrusted/text.py"
