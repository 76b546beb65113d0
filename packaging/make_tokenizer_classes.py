"""Write assets/tokenizer_classes.json: which class transformers reads a model's tokenizer with, taken from its source.

    .venv/bin/python packaging/make_tokenizer_classes.py            writes it
    .venv/bin/python packaging/make_tokenizer_classes.py --check    exit code 1 where it is out of date (a test calls this)

To be run when the pinned transformers changes; then see whether the classes in data/tokenizers/classes.py still build what they did.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parent.parent / "assets" / "tokenizer_classes.json"


def made() -> str:
    """The file's text, without importing transformers, which takes seconds."""
    spec = importlib.util.find_spec("transformers")
    assert spec is not None and spec.submodule_search_locations
    root = Path(spec.submodule_search_locations[0])
    tree = ast.parse((root / "models/auto/tokenization_auto.py").read_text("utf-8"))
    classes = {
        name
        for file in sorted(root.glob("**/tokenization*.py"))
        for name in re.findall(r"^class (\w+)\(", file.read_text("utf-8"), re.MULTILINE)
        if "Tokenizer" in name or name.endswith("Backend")
    }
    values = {
        "by_model_type": dict(_mapping(tree)),
        "wrong_on_the_hub": sorted(_set_named(tree, "MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS")),
        "classes": sorted(classes),
    }
    for name in values["wrong_on_the_hub"]:
        values["by_model_type"].setdefault(name, "TokenizersBackend")
    return json.dumps(values, indent=1, sort_keys=True) + "\n"


def _mapping(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for pair in _value_of(tree, "TOKENIZER_MAPPING_NAMES").args[0].elts:
        name, cls = pair.elts
        # "X" if is_..._available() else ...: what they need is installed with the app.
        first = next(node.value for node in ast.walk(cls) if isinstance(node, ast.Constant))
        if first is not None:
            yield name.value, first


def _set_named(tree: ast.Module, name: str) -> list[str]:
    return [item.value for item in _value_of(tree, name).elts]


def _value_of(tree: ast.Module, name: str) -> Any:
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == name:
            return node.value  # type: ignore[union-attr]
    raise SystemExit(f"tokenization_auto.py has no {name} any more: see how the class is chosen now.")


def main() -> None:
    """See above."""
    text = made()
    if "--check" in sys.argv[1:]:
        sys.exit(0 if FILE.exists() and FILE.read_text("utf-8") == text else 1)
    FILE.write_text(text, "utf-8", newline="\n")


if __name__ == "__main__":
    main()
