"""What Gradio must not do in this app, whatever it is asked: look up a name, fetch an address, hold a form field of any size in memory,
or write a traceback for each event that it cannot read.

requests.py keeps such requests from it; this is the second wall.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import logging
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NoReturn

logger = logging.getLogger("uvicorn.error")


def restrain() -> None:
    """After Gradio's import, before its page is made. Doing it twice does nothing more."""
    from starlette.formparsers import MultiPartException

    fetching: Any = importlib.import_module("safehttpx")
    fetching.get = fetching.async_validate_url = _fetch_nothing
    queueing: Any = importlib.import_module("gradio.queueing")
    queueing.traceback = _FewTraces()
    parser: Any = importlib.import_module("gradio.route_utils").GradioMultiPartParser
    if (before := parser.on_headers_finished).__name__ != "only_files":

        def only_files(self: Any) -> None:
            before(self)
            if self._current_part.file is None:
                raise MultiPartException("Only files are taken.")

        parser.on_headers_finished = only_files


async def _fetch_nothing(*_given: object, **_named: object) -> NoReturn:
    raise ValueError("nothing is fetched from an address")


class _FewTraces:
    """In place of the module traceback in Gradio's queue: a defect of ours is written whole, what Gradio itself could not read in a
    line."""

    def print_exc(self) -> None:
        """See traceback.print_exc."""
        error = sys.exception()
        if error is None:
            return
        ours = any("finetune_local" in frame.filename for frame in traceback.extract_tb(error.__traceback__))
        if ours:
            traceback.print_exception(error)
        else:
            logger.warning("An event of the page could not be read: %s: %.200s", type(error).__name__, error)


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
