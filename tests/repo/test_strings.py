"""The window's words: complete, in both languages, none missing, none left over."""

from __future__ import annotations

import ast
import re
import string
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from finetune_local.data.readers.scrub import KINDS
from finetune_local.evaluation.metrics import metrics
from finetune_local.export.targets import targets
from finetune_local.gui.i18n.strings import LANGUAGES, Strings, table
from finetune_local.gui.widgets.controls import kind_of
from finetune_local.inference.sampling import Sampling
from finetune_local.models.catalog import catalog
from finetune_local.spec.objectives import objectives
from finetune_local.spec.run import COLUMN_ROLES
from finetune_local.spec.tuners import presets
from finetune_local.spec.walk import spec_fields
from finetune_local.system.preferences import Preferences

ROOT = Path(__file__).resolve().parents[2]
WINDOW = [p for top in ("gui", "runtime", "chat") for p in sorted((ROOT / "app/finetune_local" / top).rglob("*.py"))]
CHINESE = re.compile(r"[\u3400-\u9fff]")
FIELDS = {
    **dict(spec_fields()),
    **{f"preferences.{name}": field for name, field in Preferences.model_fields.items()},
    **{f"sampling.{name}": field for name, field in Sampling.model_fields.items()},
}
CHOICES = {
    f"{path}.{value}"
    for path, field in FIELDS.items()
    if typing.get_origin(kind_of(field)[0]) is typing.Literal
    for value in typing.get_args(kind_of(field)[0])
}
QUANTS = [quant for target in targets().values() for quant in target.quants]


def _is_word(title: str) -> bool:
    """Whether a title is not a name such as Q8_0, which is the same in Chinese."""
    return not re.search(r"\d", title)


BY_LISTING = {
    "settings.": set(FIELDS),
    "help.": set(FIELDS),
    "choices.": CHOICES,
    "catalog.": {entry.name for entry in catalog()},
    "methods.": {f"{key}.{part}" for key in presets() for part in ("title", "summary")},
    "metrics.": {f"{key}.{part}" for key in metrics() for part in ("title", "short")}
    | {f"{key}.{metric.key}" for key, objective in objectives().items() for metric in objective.reports},
    "objectives.": {f"{key}.{part}" for key in objectives() for part in ("title", "summary")},
    "quants.": {
        f"{quant.key}.{part}"
        for quant in QUANTS
        for part in ("title", "summary")
        if part != "title" or _is_word(quant.title)
    },
    "targets.": {f"{key}.{part}" for key in targets() for part in ("title", "summary", "quants_title")}
    | {f"commands.{one.key}" for target in targets().values() for one in target.commands(Path("out"), [])},
}
"""Keys that follow from what the code declares: all of them must be there, and beside them only what a page names in full."""

SAME = {
    "ALL", "API", "AdaLoRA", "Adam", "AdamW", "Alpha", "BitFit", "BLEU", "CPU", "CSV", "DoRA", "DPI", "Dropout", "English", "FP16", "Finetune",
    "GELU", "GGUF", "GPU", "GitHub", "Hugging", "Face", "IA", "ID", "JSON", "JSONL", "KL", "LM", "LSTM", "Local", "LoRA", "LoRA+", "LoRA-FA", "LoRA-drop", "LoftQ",
    "LongLoRA", "MLP", "MLX", "Min-p", "NEFTune", "OLoRA", "Ollama", "P-tuning", "PiSSA", "PyTorch", "QDoRA", "QLoRA", "ReLU", "SiLU",
    "Studio", "Top-k", "Top-p", "VeRA", "alpha", "dropout", "finetune-local", "llama.cpp", "rank", "rsLoRA", "tanh", "kB", "MB", "GB", "TB",
    "F1", "s", "tok", "NaN", "HF", "TXT",
}  # fmt: skip
"""Names and units that are the same in Chinese."""

CHINESE_IN_ENGLISH = {"choices.preferences.language.zh"}
"""A language is called by its own name."""


@pytest.mark.parametrize("prefix", BY_LISTING)
def test_what_the_code_declares_has_words(prefix: str) -> None:
    missing = sorted(key for key in BY_LISTING[prefix] if prefix + key not in table())
    assert missing == [], f"assets/strings/{prefix}toml lacks {missing}"


def test_what_data_can_hold_has_words() -> None:
    wanted = {f"data.role_{role}" for role in COLUMN_ROLES} | {f"data.kind_{kind}" for kind in KINDS}
    assert sorted(wanted - set(table())) == []


def test_both_languages_say_the_same() -> None:
    problems = [f"{key}: {problem}" for key in table() if (problem := _problem(key))]
    assert problems == []


def _problem(key: str) -> str:
    english, chinese = table()[key]
    if not chinese.strip() or (english is not None and not english.strip()):
        return "empty in one language"
    if english is not None and _places(english) != _places(chinese):
        return "other places in the two languages"
    if english is not None and CHINESE.search(english) and key not in CHINESE_IN_ENGLISH:
        return "Chinese in the English text"
    words = set(re.findall(r"[A-Za-z][A-Za-z0-9.+-]*", re.sub(r"\{[^}]*\}", " ", chinese)))
    return f"no Chinese in '{chinese}'" if not CHINESE.search(chinese) and words - SAME else ""


def _places(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


def test_chinese_is_set_as_chinese_is() -> None:
    """Full-width marks after Chinese characters, no space before them."""
    wrong = re.compile(r"[\u3400-\u9fff][,;:?!](?!\d)|[\u3400-\u9fff]\.(?:\s|$)|\s[，。；：？！）]|[，。；：？！（]\s")
    found = {key: chinese for key, (_, chinese) in table().items() if wrong.search(chinese)}
    assert found == {}


STEMS = "|".join(sorted({key.partition(".")[0] for key in table()}))


def _keys(node: ast.AST) -> Iterator[tuple[str, int]]:
    """Every text under a node that begins as a key does; that of an f-string as a regular expression, with any word at a place."""
    if isinstance(node, ast.JoinedStr):
        parts = [re.escape(str(p.value)) if isinstance(p, ast.Constant) else r"[\w.-]+" for p in node.values]
        if re.match(rf"(?:{STEMS})\\\.", parts[0]):
            yield "".join(parts), node.lineno
        return
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        if re.fullmatch(rf"(?:{STEMS})\.[\w.-]+", node.value):
            yield node.value, node.lineno
        return
    for child in ast.iter_child_nodes(node):
        yield from _keys(child)


def _asked_for(tree: ast.AST) -> Iterator[ast.AST]:
    """What t(…) is called with."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args:
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name.lstrip("_") in ("t", "words"):
                yield node.args[0]


@cache
def trees() -> dict[str, ast.AST]:
    return {file.relative_to(ROOT).as_posix(): ast.parse(file.read_text("utf-8")) for file in WINDOW}


@cache
def _matching(pattern: str) -> frozenset[str]:
    if "[" not in pattern:
        return frozenset({pattern} & table().keys())
    return frozenset(key for key in table() if re.fullmatch(pattern, key))


def test_every_key_that_is_asked_for_is_there() -> None:
    missing = {
        f"{file}:{line}: {pattern}"
        for file, tree in trees().items()
        for argument in _asked_for(tree)
        for pattern, line in _keys(argument)
        if not _matching(pattern)
    }
    assert missing == set()


def test_what_is_asked_for_is_of_a_file() -> None:
    """A key whose file does not exist would be found by no other test."""
    strange = {
        f"{file}:{node.lineno}: {node.value}"
        for file, tree in trees().items()
        for argument in _asked_for(tree)
        for node in ast.walk(argument)
        if isinstance(node, ast.Constant) and re.fullmatch(r"[a-z]+\.[\w.-]+", str(node.value))
        if not re.match(rf"(?:{STEMS})\.", str(node.value))
    }
    assert strange == set()


def test_no_key_is_left_over() -> None:
    patterns = {pattern for tree in trees().values() for pattern, _ in _keys(tree)}
    literal = {key for pattern in patterns if "[" not in pattern for key in _matching(pattern)}
    named = {key for pattern in patterns for key in _matching(pattern)}
    listed = {prefix + key for prefix, keys in BY_LISTING.items() for key in keys}
    dynamic = {key for key in named if not key.startswith(tuple(BY_LISTING))}
    left = sorted(set(table()) - literal - listed - dynamic)
    assert left == [], f"nothing shows these: {left}"


def test_a_text_declared_in_the_code_is_not_written_twice() -> None:
    english, chinese = (Strings(language) for language in LANGUAGES)
    assert english.get("help.training.seed") is None and chinese.get("help.training.seed")
    with pytest.raises(KeyError, match="declared in the code"):
        english("help.training.seed")
