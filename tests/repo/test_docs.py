"""The docs say what is there: every verb, every method, the tree; and what is generated is current."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from finetune_local.spec.tuners import presets

ROOT = Path(__file__).resolve().parents[2]
READMES = ("README.md", "README.zh-CN.md")
PAGES = sorted((ROOT / "docs").rglob("*.md"))
VERBS = importlib.import_module("finetune_local.cli.main").cli.list_commands(None)
NOT_IN_THE_TREE = {"LICENSE", ".gitignore", ".gitattributes"}


def test_generated_docs_are_current() -> None:
    command = [sys.executable, "packaging/make_docs.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}Run: python packaging/make_docs.py"


def test_the_tokenizer_classes_are_those_of_the_pinned_transformers() -> None:
    command = [sys.executable, "packaging/make_tokenizer_classes.py"]
    assert subprocess.run([*command, "--check"], cwd=ROOT, check=False).returncode == 0, f"Run: {' '.join(command)}"


@pytest.mark.parametrize("readme", READMES)
def test_the_readme_draws_the_tree_as_it_is(readme: str) -> None:
    listed = subprocess.run(
        ["git", "-c", "core.quotePath=false", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    real = {line.partition("/")[0] + "/" * ("/" in line) for line in listed.stdout.splitlines()} - NOT_IN_THE_TREE
    real |= {f"app/finetune_local/{p.name}/" for p in (ROOT / "app/finetune_local").iterdir() if _package(p)}
    tree = re.search(r"```text\n(.*?)```", (ROOT / readme).read_text("utf-8"), re.DOTALL)
    assert tree, f"{readme} has no tree (a ```text block)"
    drawn, folder = set(), ""
    for line in tree[1].splitlines():
        indent, name = re.match(r"( *)(\S+)", line).groups()  # type: ignore[union-attr]
        drawn.add((folder if indent else "") + name)
        folder = folder if indent else name
    assert real - drawn == set(), f"{readme}'s tree lacks these"
    gone = {name for name in drawn if not (ROOT / name).exists()}
    assert gone == set(), f"{readme}'s tree names what is not there"


def _package(path: Path) -> bool:
    return path.is_dir() and (path / "__init__.py").exists()


def test_both_readmes_have_the_same_parts() -> None:
    def shape(name: str) -> tuple[list[str], list[str]]:
        text = (ROOT / name).read_text("utf-8")
        return re.findall(r"^(#+) ", text, re.MULTILINE), re.findall(r"^```(\w*)$", text, re.MULTILINE)

    assert shape(READMES[0]) == shape(READMES[1])


@pytest.mark.parametrize("verb", VERBS)
def test_the_docs_tell_of_every_verb(verb: str) -> None:
    everything = "\n".join(p.read_text("utf-8") for p in [*PAGES, ROOT / "README.md"])
    assert re.search(rf"finetune-local {re.escape(verb)}\b", everything), f"no page shows `finetune-local {verb}`"


@pytest.mark.parametrize("method", list(presets()))
def test_the_docs_tell_of_every_method(method: str) -> None:
    assert f"`{method}`" in (ROOT / "docs" / "methods.md").read_text("utf-8")
    page = (ROOT / "docs" / "methods" / f"{method}.md").read_text("utf-8")
    paper = presets()[method].paper.removeprefix("arXiv:")
    assert page.startswith("# ") and len(page.splitlines()) >= 10 and paper in page


@pytest.mark.parametrize("readme", READMES)
def test_the_readme_counts_the_methods(readme: str) -> None:
    assert re.search(rf"- {len(presets())} (methods|种方法)", (ROOT / readme).read_text("utf-8"))


@pytest.mark.parametrize("page", [*READMES, *(str(p.relative_to(ROOT)) for p in PAGES)])
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if not re.match(r"https?://|mailto:", target):
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target} is not there"


FOREIGN = {"convert_hf_to_gguf.py", "tokenization_utils_tokenizers.py", "tokenization_utils_base.py", "version.py"}
"""Files of the libraries that our comments name."""


def test_files_that_are_named_exist() -> None:
    """Docs, comments and style sheets name modules by the end of their paths; a module that moved takes its name with it."""
    folders = ("app", "backends", "tests", "packaging", "benchmarks", "assets")
    there = [str(p.relative_to(ROOT)) for folder in folders for p in (ROOT / folder).rglob("*.py")]
    readers = [
        *(p for folder in ("app", "backends", "assets/ui", "docs") for p in (ROOT / folder).rglob("*")),
        *(ROOT / name for name in (*READMES, "CONTRIBUTING.md")),
    ]
    lost = [
        f"{page.relative_to(ROOT)}: {name}"
        for page in readers
        if page.suffix in (".py", ".md", ".css", ".js")
        for name in re.findall(r"(?<![\w/.<>-])((?:[\w-]+/)*[a-z_]\w*\.py)\b", page.read_text("utf-8"))
        if name.rpartition("/")[2] not in FOREIGN and not any(f"/{known}".endswith(f"/{name}") for known in there)
    ]
    assert lost == []


@pytest.mark.parametrize("page", [*READMES, *(str(p.relative_to(ROOT)) for p in PAGES)])
def test_commands_in_the_docs_exist(page: str) -> None:
    """Each `finetune-local VERB --option` in a code block names a verb and options that are there."""
    cli = importlib.import_module("finetune_local.cli.main").cli
    blocks = re.findall(r"```(?:sh|console|bash)\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL)
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        found = re.match(r"(?:\$ )?finetune-local((?: .*)?)$", line.split("  #")[0].rstrip())
        if not found:
            continue
        words = found[1].split()
        named = words and not words[0].startswith("-")
        verb = words.pop(0) if named else "train"
        if words[:1] in (["--help"], ["--version"]) or (verb == "train" and not words):
            continue
        command = cli.get_command(None, verb)
        assert command is not None, f"{page}: there is no verb {verb!r} in: {line}"
        while hasattr(command, "commands") and words and words[0] in command.commands:
            command = command.commands[words.pop(0)]
        known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
        unknown = [w for w in words if w.startswith("--") and w.partition("=")[0] not in known]
        assert unknown == [], f"{page}: {unknown} in: {line}"
