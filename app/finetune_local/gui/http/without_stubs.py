"""Gradio without what it does for people who write components: at each import it makes typing stubs of all of its own, into its
installed folder. That takes half of its import (two and a half seconds on two cores), and the folder need not be writable.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

_MAKES_STUBS = "gradio.component_meta"


class _Loader(importlib.abc.Loader):
    """Loads the module as ever, then takes the function out that makes stubs."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        module.create_or_modify_pyi = _nothing  # type: ignore[attr-defined]


class _Finder(importlib.abc.MetaPathFinder):
    """Finds that one module, once."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _MAKES_STUBS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


def make_no_stubs() -> None:
    """Before the first import of Gradio; later it does nothing."""
    if "gradio" not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _nothing(*_: object) -> None:
    """In place of gradio.component_meta.create_or_modify_pyi."""
