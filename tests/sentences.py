"""The templates of the sentences that the app can say, listed from its source: what assets/messages must have the Chinese of.

A sentence is made by msg("template", ...): the template is a literal, so the listing is exact.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Said:
    """One call of msg(): its template, None where it is no literal, and the names of the values it is given."""

    file: str
    line: int
    template: str | None
    values: frozenset[str]

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.template!r}"


def files() -> list[Path]:
    """The source of the app and the backends."""
    return [path for top in ("app", "backends") for path in sorted((ROOT / top).rglob("*.py"))]


@cache
def listed() -> tuple[Said, ...]:
    """Every call of msg()."""
    return tuple(
        said for path in files() for said in listed_in(path.read_text("utf-8"), path.relative_to(ROOT).as_posix())
    )


def listed_in(source: str, name: str) -> Iterator[Said]:
    """The calls in one module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "msg":
            first = node.args[0] if node.args else None
            template = first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else None
            yield Said(name, node.lineno, template, frozenset(str(keyword.arg) for keyword in node.keywords))
