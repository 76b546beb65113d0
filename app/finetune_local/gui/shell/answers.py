"""Answers of the lookup process: asked for in a thread, shown on the page once they have come."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from finetune_local.runtime.rpc import RpcClient
from finetune_local.system.errors import FinetuneError

_KEPT = 32


@dataclass(frozen=True)
class Answer:
    """What is known now: the newest value (None before the first), the error that came instead, and whether a request is under way."""

    value: Any = None
    problem: Exception | None = None
    waiting: bool = False


class Answers:
    """Answers to one kind of question. Any thread may ask."""

    def __init__(self, client: RpcClient, procedure: str) -> None:
        self._client, self._procedure = client, procedure
        self._known: dict[tuple[tuple[str, Any], ...], Answer] = {}
        self._lock = threading.Lock()

    def ask(self, *, again: bool = False, **values: Any) -> Answer:
        """The known answer. It is requested where there is none, or with `again`; the old answer stays until the new one is there."""
        key = tuple(sorted(values.items()))
        with self._lock:
            known = self._known.get(key)
            if known is not None and (known.waiting or not again):
                return known
            answer = Answer(known.value if known else None, None, waiting=True)
            self._known.pop(key, None)
            while len(self._known) >= _KEPT:
                self._known.pop(next(iter(self._known)))
            self._known[key] = answer
        threading.Thread(target=self._fetch, args=(key, values), name=self._procedure, daemon=True).start()
        return answer

    def _fetch(self, key: tuple[tuple[str, Any], ...], values: dict[str, Any]) -> None:
        try:
            answer = Answer(self._client.call(self._procedure, **values))
        except (FinetuneError, RuntimeError, OSError) as error:
            answer = Answer(None, error)
        with self._lock:
            if key in self._known:
                self._known[key] = answer
