"""Patches of Gradio: restrictions for security, and a faster import.

restrain() is a second line of defence behind requests.py. Gradio can no longer resolve a name, fetch an address, read a form field of
any size into memory, or log a traceback for each event that it cannot parse.

skip_stubs() must run before the first import of Gradio. By itself, Gradio writes typing stubs of its components into its installed
folder at each import. That takes half of its import time (2.5 s on two cores), and the folder may be read-only.
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
_STUB_WRITER = "gradio.component_meta"


def restrain() -> None:
    """Apply the restrictions. Call it after Gradio is imported and before a page is built; a second call changes nothing."""
    from starlette.formparsers import MultiPartException

    fetching: Any = importlib.import_module("safehttpx")
    fetching.get = fetching.async_validate_url = _fetch_nothing
    queueing: Any = importlib.import_module("gradio.queueing")
    queueing.traceback = _ShortTracebacks()
    parser: Any = importlib.import_module("gradio.route_utils").GradioMultiPartParser
    if (before := parser.on_headers_finished).__name__ != "only_files":

        def only_files(self: Any) -> None:
            before(self)
            if self._current_part.file is None:
                raise MultiPartException("Only files are taken.")

        parser.on_headers_finished = only_files


async def _fetch_nothing(*_args: object, **_kwargs: object) -> NoReturn:
    raise ValueError("nothing is fetched from an address")


class _ShortTracebacks:
    """Replaces the module `traceback` in Gradio's queue. Errors in the app's code keep their traceback; errors in Gradio's become one line."""

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


class _Loader(importlib.abc.Loader):
    """Loads the module, then replaces its function that writes stubs."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        module.create_or_modify_pyi = _nothing  # type: ignore[attr-defined]


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the module that writes stubs, once, and then removes itself."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _STUB_WRITER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


def skip_stubs() -> None:
    """Prevent Gradio from writing stubs. Has no effect once Gradio is imported."""
    if "gradio" not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _nothing(*_: object) -> None:
    """Replaces gradio.component_meta.create_or_modify_pyi."""
