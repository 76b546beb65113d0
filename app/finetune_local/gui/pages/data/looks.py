"""Inspection of data files in the background. A page shows what is known so far and never waits for a large file.

Rows in view are requested first, because they arrive quickly, then the whole inspection. If other rows are requested during the
inspection, it is interrupted, the rows are fetched, and it continues.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune_local.runtime.rpc import RpcCall, RpcClient
from finetune_local.spec.run import DEFAULT_OBJECTIVE, DataSettings
from finetune_local.system.errors import FinetuneError
from finetune_local.system.paths import located
from finetune_local.system.untrusted.text import parse_json


@dataclass(frozen=True)
class Question:
    """A request of a window. `settings`: the [data] settings as JSON. `files`: path, size and modification time of each file."""

    settings: str
    model: str
    files: tuple[tuple[str, int, int], ...]
    models: float = 0.0
    first: int = 0
    count: int = 10
    row: int = 0
    objective: str = DEFAULT_OBJECTIVE

    @property
    def as_json(self) -> dict[str, Any]:
        """The values of the RPC request (gui/lookups/inspect.py)."""
        return {"settings": parse_json(self.settings), "model": self.model, "objective": self.objective}

    @property
    def whole(self) -> Question:
        """The request without the rows in view: what the whole inspection depends on."""
        return replace(self, first=0, row=0)


def question(
    settings: DataSettings,
    model: str,
    models: Path,
    first: int,
    count: int,
    row: int,
    objective: str = DEFAULT_OBJECTIVE,
) -> Question:
    """The request for the files as they are on disk now, for a model in the folder `models` and an objective."""
    names = [*settings.files, *settings.validation_files]
    text = json.dumps(settings.model_dump(mode="json", exclude_defaults=True), ensure_ascii=False)
    return Question(text, model, tuple(map(_stamp, names)), models.stat().st_mtime, first, count, row, objective)


class Look:
    """The inspection of one window. `rows` and `found`: results of gui/lookups/inspect.py, or None. `share`: progress, 0 to 1."""

    def __init__(self, client: RpcClient) -> None:
        self._client = client
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._call: RpcCall | None = None
        self._question: Question | None = None
        self._rows_of: Question | None = None
        self._found_of: Question | None = None
        self.rows: Mapping[str, Any] | None = None
        self.found: Mapping[str, Any] | None = None
        self.share: float | None = None
        self.problem: Exception | None = None
        self.version = 0
        """Changes whenever there is something new to show."""

    @property
    def working(self) -> bool:
        """Whether reading continues."""
        return self._thread is not None

    @property
    def complete(self) -> bool:
        """Whether `found` is the complete result of the last request."""
        return self._question is not None and self._found_of == self._question.whole and self.problem is None

    def ask(self, question: Question) -> None:
        """Answer this request from now on; known results are reused."""
        with self._changed:
            if question == self._question and self.problem is None:
                return
            if self._question is None or question.files != self._question.files:
                self.rows = self.found = None
            self._question, self.problem = question, None
            self.version += 1
            call = self._call
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="look", daemon=True)
                self._thread.start()
        if call is not None:
            call.cancel()

    def wait(self, seconds: float) -> None:
        """Wait until everything is known, at most `seconds`."""
        until = time.monotonic() + seconds
        with self._changed:
            while self._thread is not None and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)

    def _work(self) -> None:
        while True:
            with self._changed:
                question = self._question
                rows, whole = self._rows_of != question, question is not None and self._found_of != question.whole
                if question is None or not (rows or whole):
                    self._thread = None
                    self.version += 1
                    self._changed.notify_all()
                    return
            try:
                if rows:
                    self._ask_rows(question)
                else:
                    self._ask_all(question)
            except (FinetuneError, RuntimeError, OSError) as error:
                with self._changed:
                    if question == self._question:
                        self.problem, self._rows_of, self._found_of = error, question, question.whole

    def _ask_rows(self, question: Question) -> None:
        shown = {"first": question.first, "count": question.count, "row": question.row}
        rows = self._client.call("inspect", what="rows", **question.as_json, **shown)
        with self._changed:
            if question == self._question:
                self.rows, self._rows_of = rows, question
                self.version += 1

    def _ask_all(self, question: Question) -> None:
        call = self._client.stream("inspect", what="all", **question.as_json)
        with self._changed:
            self._call, self.share = call, 0.0
            other = question != self._question
        if other:
            call.cancel()
        found: Mapping[str, Any] = {}
        try:
            while True:
                event = next(call)
                with self._changed:
                    if self._question is not None and question.whole == self._question.whole:
                        self.found = event.get("found", self.found)
                        self.share = event.get("done", self.share)
                        self.version += 1
        except StopIteration as end:
            found = end.value
        finally:
            with self._changed:
                self._call = None
        with self._changed:
            if self._question is not None and question.whole == self._question.whole:
                self.found = found
                self._found_of = question.whole if found["complete"] else None
                self.version += 1


def _stamp(name: str) -> tuple[str, int, int]:
    with suppress(OSError, ValueError):
        state = located(name).stat()
        return name, state.st_size, state.st_mtime_ns
    return name, -1, 0
