"""The field's words (docs/design.md, glossary): old words may not return.

Checked: names that the code defines, docstrings, comments, docs, and the English and Chinese of the interface and of messages.
"""

import ast
import io
import re
import tokenize
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
CODE = ("app/finetune_local", "backends/finetune_local_backends")

NAMES = {
    "families": "tuners",
    "keeper|site|sites|slot|slots": "adapter layer, wrapped module",
    "rates": "lr_multipliers",
    "gate|gates": "verification",
    "trial|trials": "calibration",
    "workplace|desk": "process folder, worker, RPC",
    "told|tell|tells|said|asked|asking": "report, progress, message, requested",
    "whoever|wanted": "request, requested",
}
"""Words of a name (snake_case or CamelCase), and what to say instead."""

PROSE = {
    r"way (back|there)": "backward, forward, saved for backward",
    r"at work": "running, in use",
    r"asks? of\b": "needs, requires",
    r"(is|are|be|was|were) told": "receives, is shown, is reported",
    r"tells( (of|how|which|what|whether|that|apart))?\b": "reports, says",
    r"such as it is": "",
    r"(?<!with)held\b(?![- ]out)": "stored, loaded, kept",
    r"of (its|their|our|one's|his) own": "its own",
    r"leaves? off|left off": "omits",
    r"go(es)? on with": "resumes, continues",
    r"whoever": "callers that, programs that",
    r"set aside": "rejected",
    r"worth getting": "recommended",
    r"look again": "refresh",
    r"keepers?|workplaces?|the desk": "process folder, worker, adapter layer",
    r"the gate": "verification",
    r"(is|are) asked": "",
    r"nobody('s)?": "",
    r"kin\b": "variants",
    r"no concern of|nobody else's business": "",
}
"""Phrases of docstrings, comments and docs, and what to say instead."""

INTERFACE = {
    r"there is no such": "not found",
    r"gates?": "verification",
    r"trials?": "calibration run",
    r"held(?![- ]out)": "stored, loaded",
    r"not [^.]{0,20}any more": "no longer",
    r"make room": "free some space",
    r"leave (it|them|one of them) out": "remove it, use only one of them",
    r"goes? on": "continues",
    r"otherwise than": "differently from",
    r"(begun|began|anew)": "started, again",
    r"cannot be told": "unknown, not clear",
    r"without a word": "unexpectedly",
    r"look(s|ed)? (into|in)": "read, searched",
}
"""Phrases of the interface and of error sentences, and what to say instead."""

CHINESE = {
    "再看一次": "刷新", "值得下载": "推荐", "放在一边": "被剔除", "搁置": "被剔除", "试训": "校准训练",
    "检查用的提示": "验证用的提示", "量子化": "量化", "基础模型": "基座模型", "令牌数": "词元数", "调校": "微调",
}  # fmt: skip

EXCEPTIONS = {
    "app/finetune_local/spec/tuners/lora_drop.py": {"trial"},  # names of settings, which are on disk
}


@cache
def findings() -> tuple[tuple[str, int, str, str], ...]:
    """(folder, line, word, place) of every old word."""
    return tuple(_findings())


def _findings() -> Iterator[tuple[str, int, str, str]]:
    for path in sorted(p for place in CODE for p in (ROOT / place).rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        folder = "/".join(name.split("/")[:3])
        text = path.read_text(encoding="utf-8")
        for line, word in (*_names(text), *_prose_of(text)):
            if word not in EXCEPTIONS.get(name, ()):
                yield folder, line, word, name
    for path in (*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"):
        text = path.read_text(encoding="utf-8").partition("## Glossary")[0]
        for number, line in enumerate(text.splitlines(), 1):
            yield from (("docs", number, word, path.name) for word in _phrases(line))
    for folder in ("strings", "messages"):
        for path in sorted((ROOT / "assets" / folder).glob("*.toml")):
            for english, chinese in _pairs(tomllib.loads(path.read_text(encoding="utf-8"))):
                yield from ((folder, 0, word, path.name) for word in (*_phrases(english), *_interface_phrases(english)))
                yield from ((folder, 0, word, path.name) for word in CHINESE if word in chinese)


def _names(text: str) -> Iterator[tuple[int, str]]:
    """Old words in the names of functions, classes, parameters and fields."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            name, line = node.name, node.lineno
        elif isinstance(node, ast.arg):
            name, line = node.arg, node.lineno
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name, line = node.target.id, node.lineno
        else:
            continue
        words = {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}
        for known in NAMES:
            yield from ((line, word) for word in sorted(words & set(known.split("|"))))


def _prose_of(text: str) -> Iterator[tuple[int, str]]:
    """Old phrases in docstrings and comments."""
    tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    for i, token in enumerate(tokens):
        alone = token.type == tokenize.STRING and (i == 0 or tokens[i - 1].type in _BEFORE_DOCSTRING)
        if alone or token.type == tokenize.COMMENT:
            yield from ((token.start[0], word) for word in _phrases(token.string))


_BEFORE_DOCSTRING = {tokenize.INDENT, tokenize.NEWLINE, tokenize.NL, tokenize.ENCODING, tokenize.DEDENT}


def _phrases(text: str) -> Iterator[str]:
    plain = " ".join(text.split()).lower()
    for phrase in PROSE:
        yield from (found.group(0) for found in re.finditer(rf"\b(?:{phrase})\b", plain))


def _interface_phrases(text: str) -> Iterator[str]:
    plain = re.sub(r"--[\w-]+", "", " ".join(text.split()).lower())  # options keep their names
    for phrase in INTERFACE:
        yield from (found.group(0) for found in re.finditer(rf"\b(?:{phrase})\b", plain))


def _pairs(table: object) -> Iterator[tuple[str, str]]:
    if isinstance(table, dict):
        for value in table.values():
            yield from _pairs(value)
    elif isinstance(table, list) and len(table) == 2 and all(isinstance(text, str) for text in table):
        yield table[0], table[1]
    elif isinstance(table, list):
        for value in table:
            yield from _pairs(value)


def test_no_old_word_is_used() -> None:
    assert not [f"{place}:{line}: {word}" for _, line, word, place in findings()]
