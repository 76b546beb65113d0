"""No list outside its file: a key (of a method, tuner, objective, format, target, page, verb or job) stands in its own file alone.

A key that is also an ordinary word ("text", "model") counts only where it is used as a key: compared with something called so,
looked up among the things it names, or listed beside another key of its kind. `ALLOWED` is what is left, each with its reason;
it only becomes shorter.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from finetune_local.cli.main import Verbs
from finetune_local.data.formats import formats
from finetune_local.export.targets import targets
from finetune_local.runtime import kinds as job_kinds
from finetune_local.spec.objectives import objectives
from finetune_local.spec.tuners import presets, tuners

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "app" / "finetune_local"
SOURCES = (APP, ROOT / "backends" / "finetune_local_backends")

KINDS: Mapping[str, tuple[str, ...]] = {
    "method": tuple(presets()),
    "tuner": tuple(tuners()),
    "objective": tuple(objectives()),
    "format": tuple(formats()),
    "target": tuple(targets()),
    "page": tuple(place.name for place in sorted((APP / "gui" / "pages").iterdir()) if (place / "page.py").is_file()),
    "verb": tuple(Verbs().list_commands(None)),  # type: ignore[arg-type]
    "job": tuple(job_kinds.kinds()),
}

ORDINARY = frozenset(
    {
        "adapter", "adapters", "app", "bias", "chat", "data", "download", "evaluate", "export", "extract", "full", "generate", "home",
        "merge", "merged", "methods", "model", "models", "norms", "preference", "prefix", "prompt", "resume", "runs", "settings",
        "text", "train", "trash",
    }
)  # fmt: skip
"""Keys that are words of the app's JSON, of folders, of models' tensors and of sentences too."""

NAMES: Mapping[str, frozenset[str]] = {
    "method": frozenset({"method", "preset", "presets", "methods", "method_key", "key"}),
    "tuner": frozenset({"tuner", "tuners", "tuner_of", "method_tuner", "family", "key"}),
    "objective": frozenset({"objective", "objectives"}),
    "format": frozenset({"format", "formats"}),
    "target": frozenset({"target", "targets", "target_of"}),
    "page": frozenset({"page", "pages", "on_show", "on_tick"}),  # not "go": a link names the page it leads to
    "verb": frozenset({"verb", "verbs", "cmd_name"}),
    "job": frozenset({"kind", "kinds", "job", "kind_of", "JobKind"}),
}
"""What variables, fields and functions are called that hold, or take, a key of each kind."""

ALLOWED: Mapping[tuple[str, str], str] = {
    ("doctor.py", "gguf"): "the Python library of that name, whose version it reports"
}
"""Name of a file, and a key: why it stands there."""


def test_keys_stand_in_their_own_files() -> None:
    new = [f"{file.relative_to(ROOT)}:{line} '{key}'" for file, key, line in uses() if (file.name, key) not in ALLOWED]
    assert new == [], "ask the thing itself (its file declares what it is), instead of testing for its key"


def test_the_list_of_what_is_allowed_is_no_longer_than_needed() -> None:
    there = {(file.name, key) for file, key, _ in uses()}
    assert [entry for entry in ALLOWED if entry not in there] == [], "it is gone: take it off the list"


def test_keys_are_found() -> None:
    def found(text: str) -> list[str]:
        return [key for key, _ in keys_in(ast.parse(text), frozenset())]

    assert found('"""lora"""\nx = "lora-fa"\ny = f"qlora {x}"') == ["lora-fa"]
    assert found('settings["model"]') == found('print("text")') == found('{"model": 1, "device": 2}') == []
    assert (
        found('if spec.tuner == "full": pass')
        == found('tuners()["full"]')
        == found('x.tuner in ("full", "y")')
        == ["full"]
    )
    assert found('KINDS = {"export": "a", "extract": "b"}') == ["export", "extract"]
    assert found('context.on_tick("export", fn, [])') == ["export"] and found('context.go(window, "export")') == []


@cache
def uses() -> tuple[tuple[Path, str, int], ...]:
    """Every use of a key outside its own file: file, key, line."""
    files = [file for folder in SOURCES for file in sorted(folder.rglob("*.py"))]
    return tuple((file, *use) for file in files for use in keys_in(ast.parse(file.read_text("utf-8")), own(file)))


def own(file: Path) -> frozenset[str]:
    """The keys whose file this is: it, or a folder around it, is called so; a tuner's files (low_rank_peft.py too) have its presets."""
    names = {file.stem.removeprefix("job_"), *(part.name for part in file.parents if part.is_relative_to(ROOT))}
    names |= {tuner for tuner in tuners() if file.stem.startswith(f"{tuner}_") and file.parent.name == "spec"}
    mine = {preset.key for preset in presets().values() if preset.tuner in names and "spec" in file.parts}
    return frozenset(mine | {key for kind in KINDS.values() for key in kind if key.replace("-", "_") in names})


def keys_in(tree: ast.Module, own_keys: frozenset[str]) -> Iterator[tuple[str, int]]:
    """Keys that are used in a module, but for its own."""
    plain = _no_keys(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in plain:
            known = node.value not in ORDINARY and any(node.value in keys for keys in KINDS.values())
            if known and node.value not in own_keys:
                yield node.value, node.lineno
        for constant in _as_keys(node):
            if constant.value in ORDINARY and constant.value not in own_keys:
                yield constant.value, constant.lineno


def _no_keys(tree: ast.Module) -> set[ast.AST]:
    """Docstrings, and the words of f-strings."""
    found: set[ast.AST] = set()
    for node in ast.walk(tree):
        for inner in getattr(node, "body", []) if isinstance(getattr(node, "body", None), list) else []:
            if isinstance(inner, ast.Expr):
                found.add(inner.value)
        if isinstance(node, ast.JoinedStr):
            found.update(node.values)
    return found


def _as_keys(node: ast.AST) -> Iterator[ast.Constant]:
    """Words that are used as keys by a node: compared, looked up, given to a function, or listed beside another of their kind."""
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        names = {_name(side) for side in sides}
        words = [inner for side in sides for inner in [side, *_elements(side)]]
        yield from (word for word in words if _is_key(word, names))
    elif isinstance(node, ast.Subscript):
        yield from (
            [node.slice]
            if _is_key(node.slice, {_name(node.value)} if isinstance(node.value, ast.Call) else set())
            else []
        )
    elif isinstance(node, ast.Call):
        yield from (word for word in node.args if _is_key(word, {_name(node.func)}))
        yield from (word.value for word in node.keywords if _is_key(word.value, {word.arg or ""}))
    elif isinstance(node, (ast.Tuple, ast.List, ast.Set, ast.Dict)):
        words = [word for word in _elements(node) if isinstance(word, ast.Constant)]
        for keys in KINDS.values():
            listed = [word for word in words if word.value in keys]
            if len(listed) > 1 and len(listed) == len(words):
                yield from listed


def _is_key(node: ast.AST, names: set[str]) -> bool:
    """Whether it is a key, used beside something that is called as things of its kind are."""
    return isinstance(node, ast.Constant) and any(node.value in KINDS[kind] and names & NAMES[kind] for kind in KINDS)


def _elements(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.Dict):
        return [key for key in node.keys if key is not None]
    return list(node.elts) if isinstance(node, (ast.Tuple, ast.List, ast.Set)) else []


def _name(node: ast.AST) -> str:
    """What something is called: the last word of a.b.c, of a call, of d["c"]."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Call(func=inner):
            return _name(inner)
        case ast.Subscript(slice=ast.Constant(value=str() as name)):
            return name
    return ""
