"""The English sentences that the core of the app can say, listed from its source: what assets/messages must have the Chinese of.

A sentence is an expression that makes a text: strings, f-strings, sums and choices of them, with what is only known when it is said as
PLACE. Constants of the module and texts put together in the same function are followed; what another function returns is a PLACE, and
is listed where that function makes it.
"""

from __future__ import annotations

import ast
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count, product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACE = "\0"
MOST = 256
"""Ways to say one sentence that are looked at."""

NO_CORE = ("app/finetune_local/cli/", "app/finetune_local/gui/")
"""The terminal's own words, and the pages, whose words are in assets/strings."""

DEFECTS = {"RuntimeError", "AssertionError", "KeyError", "TypeError", "NotImplementedError", "StopIteration"}
QUIET = {"Preset", "Quant", "GgufQuant", "compile", "search", "fullmatch", "match", "sub", "findall", "startswith", "endswith", "removeprefix", "removesuffix", "split",
         "cast", "NewType", "TypeVar", "getLogger", "debug", "which", "encode", "Literal", "field", "replace", "partition",
         "warn", "filterwarnings", "fromisoformat", "strftime", "SimpleNamespace", "setting", "Method", "print", "environ"}  # fmt: skip
"""Calls whose texts nobody reads, or that are listed by what declares them (test_strings.py)."""

SAID_BY = {"Phase": "name", "Note": "text", "progress": "", "tell": "", "given": ""}
"""Calls that say even a single word."""


@dataclass(frozen=True)
class Sentence:
    """One way to say something, one line of it. `text` has PLACE for what is filled in."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text.replace(PLACE, '{}')}"


def files() -> list[Path]:
    """The source of the core."""
    found = [path for top in ("app", "backends") for path in sorted((ROOT / top).rglob("*.py"))]
    return [path for path in found if not path.relative_to(ROOT).as_posix().startswith(NO_CORE)]


@cache
def listed() -> tuple[Sentence, ...]:
    """Every sentence of the core, each way to say it once a file."""
    found: dict[tuple[str, str], Sentence] = {}
    for path in files():
        for sentence in _module(path).sentences():
            found.setdefault((sentence.file, sentence.text), sentence)
    return tuple(found.values())


def listed_in(source: str, name: str) -> Iterator[Sentence]:
    """The sentences of one module."""
    return _Module(source, name).sentences()


def example(text: str) -> str:
    """A sentence as it could be said: a name at every place, but nothing where a hint or another sentence may follow."""
    shown = re.sub(rf"(?<=[.!?…]) ?{PLACE}(?= [A-Z`(]|$)|(?<=:){PLACE}$", "", text)
    shown = re.sub(rf"^{PLACE} (?=[A-Z])", "", shown)
    numbers = count(11)
    return re.sub(PLACE, lambda _: f"x{next(numbers)}", shown)


def texts() -> Iterator[str]:
    """Every line that is written in the core's source, whoever reads it."""
    for path in files():
        module = _module(path)
        for node in ast.walk(module.tree):
            if _texty(node):
                for way in module.ways(node):
                    yield from way.split("\n")


@cache
def _module(path: Path) -> _Module:
    return _Module(path.read_text("utf-8"), path.relative_to(ROOT).as_posix())


class _Module:
    def __init__(self, source: str, name: str) -> None:
        self.name = name
        self.tree = ast.parse(source)
        self.parents = {child: node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)}
        self.constants = _assigned(self.tree.body)
        self.scopes: dict[ast.AST, dict[str, list[ast.expr]]] = {}
        self.inlined: set[ast.AST] = set()

    def sentences(self) -> Iterator[Sentence]:
        roots = [node for node in ast.walk(self.tree) if _texty(node) and self._begins(node)]
        self.inlined.clear()
        said = [(root, self.ways(root)) for root in roots]  # all of them first: inlined is complete only then
        for root, ways in said:
            if root in self.inlined:
                continue
            alone = self._said_alone(root)
            for way in ways:
                for line in way.split("\n"):
                    if _is_sentence(line, alone):
                        yield Sentence(self.name, root.lineno, line.strip(" "))

    def _begins(self, node: ast.AST) -> bool:
        """Whether an expression is no part of a larger text, and is said to somebody."""
        parent = self.parents[node]
        if _texty(parent) or isinstance(
            parent, ast.FormattedValue | ast.Expr | ast.Compare | ast.Subscript | ast.Assert
        ):
            return False
        while not isinstance(parent, ast.stmt):
            if isinstance(parent, ast.Call):
                name = _called(parent)
                if name in DEFECTS or name in QUIET or (name == "ValueError" and "/spec/" not in self.name):
                    return False
            if isinstance(parent, ast.JoinedStr | ast.Compare | ast.Assert):
                return False
            parent = self.parents[parent]
        return True

    def _said_alone(self, node: ast.AST) -> bool:
        parent = self.parents[node]
        if isinstance(parent, ast.keyword):
            call = self.parents[parent]
            return isinstance(call, ast.Call) and SAID_BY.get(_called(call)) == parent.arg
        return isinstance(parent, ast.Call) and _called(parent) in SAID_BY and parent.args[:1] == [node]

    def ways(self, node: ast.AST) -> list[str]:
        """The texts that an expression can come to."""
        if isinstance(node, ast.Constant):
            return [node.value] if isinstance(node.value, str) else [PLACE]
        if isinstance(node, ast.JoinedStr):
            return _joined([self.ways(part) for part in node.values])
        if isinstance(node, ast.FormattedValue):
            return self.ways(node.value) if node.conversion < 0 and node.format_spec is None else [PLACE]
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return _joined([self.ways(node.left), self.ways(node.right)])
        if isinstance(node, ast.IfExp):
            return list(dict.fromkeys([*self.ways(node.body), *self.ways(node.orelse)]))
        if isinstance(node, ast.Name):
            return self._value_of(node)
        return [PLACE]

    def _value_of(self, name: ast.Name) -> list[str]:
        """What a variable stands for: a text of the same function, or a constant of the module."""
        scope: ast.AST = name
        while not isinstance(scope, ast.FunctionDef | ast.Module):
            scope = self.parents[scope]
        if scope not in self.scopes:
            self.scopes[scope] = _assigned(scope.body) if isinstance(scope, ast.FunctionDef) else {}
        values = self.scopes[scope]
        found = values.get(name.id) or self.constants.get(name.id) or []
        if not found or not all(_texty(value) for value in found):
            return [PLACE]
        self.inlined.update(found)
        return list(dict.fromkeys(way for value in found for way in self.ways(value)))


def _assigned(body: Sequence[ast.stmt]) -> dict[str, list[ast.expr]]:
    """What names are given in these statements, and those within them but for functions of their own."""
    found: dict[str, list[ast.expr]] = {}
    waiting: deque[ast.AST] = deque(body)
    while waiting:
        node = waiting.popleft()
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda):
            continue
        if isinstance(node, ast.Assign):
            for target in node.targets:
                pairs = [(target, node.value)]
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = list(zip(target.elts, node.value.elts, strict=False))
                for to, value in pairs:
                    if isinstance(to, ast.Name):
                        found.setdefault(to.id, []).append(value)
        elif isinstance(node, ast.For | ast.comprehension) and isinstance(node.target, ast.Name):
            found.setdefault(node.target.id, []).append(node.iter)
        waiting.extend(ast.iter_child_nodes(node))
    return found


def _texty(node: ast.AST) -> bool:
    """Whether an expression makes a text that is written here."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str)
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.Add) and (_texty(node.left) or _texty(node.right))
    if isinstance(node, ast.IfExp):
        return _texty(node.body) or _texty(node.orelse)
    return isinstance(node, ast.JoinedStr)


def _joined(parts: Sequence[Sequence[str]]) -> list[str]:
    result = ["".join(way) for way, _ in zip(product(*parts), range(MOST), strict=False)]
    return [re.sub(f"{PLACE}+", PLACE, way) for way in result]


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _is_sentence(text: str, alone: bool) -> bool:
    """Whether a text has words in a row; one that is said by itself may be a single word."""
    words = re.findall(r"[A-Za-z]{2,}", re.sub(rf"\S*{PLACE}\S*", " ", text))
    if alone:
        return bool(words)
    return len(words) >= 2 and " " in text.strip() and bool(re.search(r"[a-z]{2,}[ ,.:;)]", text))
