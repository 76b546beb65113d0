"""Rules of the source: imports, sizes, words that must not be there, and files that belong together."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_local.backend import backends
from finetune_local.spec.tuners import tuners
from finetune_local.spec.walk import spec_fields
from finetune_local.system.fields import extra_of, flag_of

ROOT = Path(__file__).resolve().parents[2]
SOURCE = sorted(p for top in ("app", "backends", "packaging", "benchmarks") for p in (ROOT / top).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
LONGEST = 400


def test_import_contracts() -> None:
    program = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    assert program, "import-linter is not installed: it is in the dev lock"
    done = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("path", SOURCE + TESTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_to_get_lost_in(path: Path) -> None:
    lines = len(path.read_text("utf-8").splitlines())
    assert lines <= LONGEST, f"{path.relative_to(ROOT)} has {lines} lines: give its parts files of their own"


FORBIDDEN = {
    r"except (Exception|BaseException)?:\s*(#.*)?\n\s*pass\b": "an error that is swallowed",
    r"\btorch\.load\(": "a pickle, which can run code",
    r"^\s*(import|from) pickle\b": "a pickle, which can run code",
    r"trust_remote_code\s*=\s*True": "code from a download",
    r"(/work/|/tmp/)": "a path of one machine",
    r"\b(TODO|FIXME|XXX)\b": "unfinished work belongs in an issue",
    r"shell\s*=\s*True": "a shell, which reads names as commands",
}


@pytest.mark.parametrize("path", SOURCE, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_forbidden(path: Path) -> None:
    text = path.read_text("utf-8")
    for pattern, why in FORBIDDEN.items():
        found = re.search(pattern, text, re.MULTILINE)
        assert not found, f"{path.relative_to(ROOT)}: {found.group(0)!r}: {why}"


NETWORK = {
    "app/finetune_local/export/engines/llama_worker.py",  # llama.cpp's own server, in this process, on a socket file
    "app/finetune_local/models/hub/http_file.py",
    "app/finetune_local/models/hub/repository.py",
    "app/finetune_local/models/hub/search.py",
    "app/finetune_local/models/starter.py",
    "app/finetune_local/gui/http/server.py",  # listens on 127.0.0.1
    "app/finetune_local/gui/window/instance.py",  # asks the other instance, on 127.0.0.1
}
NETWORK_MODULES = {"socket", "urllib.request", "http.client", "httpx", "requests", "aiohttp", "huggingface_hub"}


def test_only_these_files_reach_the_network() -> None:
    found = set()
    for path in (p for p in SOURCE if p.is_relative_to(ROOT / "app") or p.is_relative_to(ROOT / "backends")):
        if NETWORK_MODULES & set(_imports(path)):
            found.add(path.relative_to(ROOT).as_posix())
    assert found <= NETWORK, f"these may not import network libraries: {sorted(found - NETWORK)}"


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports for typing and imports inside functions count as well."""
    assert _cycles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}) == [["a", "b", "c"]]
    assert _cycles(_import_graph()) == []


def _import_graph() -> dict[str, set[str]]:
    """Each module of the app and the backends with the modules that it imports, whether for typing, in a function, or at its top."""
    paths = {}
    for top in (ROOT / "app", ROOT / "backends"):
        for path in top.rglob("*.py"):
            parts = path.relative_to(top).with_suffix("").parts
            paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph = {}
    for module, path in paths.items():
        names = list(_imports(path))
        # "from package import module" is an import of the module; of the package too only if something else is taken from it.
        packages = {name.rpartition(".")[0] for name in names if name in paths}
        taken = {name.rpartition(".")[0] for name in names if name.rpartition(".")[0] in paths and name not in paths}
        graph[module] = {name for name in names if name in paths and (name not in packages or name in taken)} - {module}
    return graph


def _cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules of which each imports, directly or through others, every other one of its group (Tarjan, 1972)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        order[module] = lowest[module] = len(order)
        stack.append(module)
        for other in sorted(graph[module]):
            if other not in order:
                visit(other)
            if other in stack:
                lowest[module] = min(lowest[module], lowest[other])
        if lowest[module] == order[module]:
            group = stack[stack.index(module) :]
            del stack[-len(group) :]
            if len(group) > 1:
                found.append(sorted(group))

    for module in sorted(graph):
        if module not in order:
            visit(module)
    return found


def test_text_is_opened_as_utf8() -> None:
    """Windows would otherwise read and write in its own code page."""
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {problem}"
        for path in SOURCE
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and (problem := _encoding_problem(node))
    ]
    assert wrong == []


def _encoding_problem(call: ast.Call) -> str:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    given = {keyword.arg for keyword in call.keywords}
    if "encoding" in given or None in given:
        return ""
    if name == "read_text" and not call.args:
        return "read_text() without an encoding"
    if name == "write_text" and len(call.args) < 2:
        return "write_text() without an encoding"
    on_path = isinstance(call.func, ast.Attribute)
    arguments = call.args[: 1 if on_path else 2]
    if any(isinstance(a, ast.IfExp) for a in arguments):
        return ""  # both modes are binary where this is done
    modes = [a.value for a in arguments if isinstance(a, ast.Constant)]
    modes += [k.value.value for k in call.keywords if k.arg == "mode" and isinstance(k.value, ast.Constant)]
    opens_a_path = name == "open" and (not on_path or all(m in _MODES for m in modes))
    if opens_a_path and isinstance(call.func, ast.Attribute) and getattr(call.func.value, "id", "") in _NOT_PATHS:
        return ""
    if opens_a_path and not any("b" in str(m) for m in modes):
        return "open() in text mode without an encoding"
    return ""


_MODES = {"r", "w", "a", "x", "rb", "wb", "ab", "xb", "r+", "r+b", "rb+", "a+b", "w+b"}
_NOT_PATHS = {"archive", "ModelFolder", "tarfile", "zipfile", "os", "webbrowser", "cls"}


@pytest.mark.parametrize("name", sorted(backends()))
def test_each_backend_has_a_file_for_each_tuner(name: str) -> None:
    folder = ROOT / "backends" / "finetune_local_backends" / name / "tuners"
    missing = [key for key in tuners() if not (folder / f"{key}.py").exists()]
    assert missing == [], f"{folder.relative_to(ROOT)} lacks {missing}"


@pytest.mark.parametrize("path", [path for path, _ in spec_fields()])
def test_each_setting_has_help_and_a_group(path: str) -> None:
    field = dict(spec_fields())[path]
    assert extra_of(field).get("group") in {"run", "model", "data", "method", "objective", "training"}
    description = field.description or ""
    assert description.endswith("."), f"{path}: its help is no sentence: {description!r}"
    assert len(description) <= 110, f"{path}: its help is too long for a terminal: {description!r}"


def test_no_option_is_declared_twice() -> None:
    flags = [flag_of(path.rpartition(".")[2], field) for path, field in spec_fields()]
    assert sorted(set(flags)) == sorted(flags)


WHOLE = """
import importlib, pkgutil
package = importlib.import_module("finetune_local")
for module in pkgutil.walk_packages(package.__path__, "finetune_local."):
    if module.name != "finetune_local.__main__":
        importlib.import_module(module.name)
"""


def test_every_package_can_be_imported_whole() -> None:
    """In a process of its own. Backends' own files are left to the conformance suite: they need their framework."""
    path = os.pathsep.join(str(ROOT / name) for name in ("app", "backends"))
    done = subprocess.run(
        [sys.executable, "-c", WHOLE], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr


FOLDERS = sorted(
    {path.parent for path in (ROOT / "app").rglob("*.py")} | {path.parent for path in (ROOT / "backends").rglob("*.py")}
)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_no_folder_to_get_lost_in(folder: Path) -> None:
    modules = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= 15 or folder.name == "cli", f"{len(modules)} modules: group them in folders"


def test_no_function_to_get_lost_in() -> None:
    long = []
    for path in (path for top in ("app", "backends") for path in (ROOT / top).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > 60:
                    long.append(f"{path.relative_to(ROOT)}: {node.name} has {lines} lines")
    assert long == [], "give their parts names"
