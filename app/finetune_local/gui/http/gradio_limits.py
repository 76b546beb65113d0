"""What Gradio must not do in this app, whatever it is asked: look up a name, fetch an address, hold a form field of any size in memory,
or write a traceback for each event that it cannot read.

requests.py keeps such requests from it; this is the second wall.
"""

from __future__ import annotations

import importlib
import logging
import sys
import traceback
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
