"""The process that answers for the window: `python -m finetune_local.chat.worker HOME [IDLE_SECONDS]`; see client.py.

It holds one base with several adapters. Every request names all that it needs (conversation, model, adapters, who answers), so
that two windows cannot interfere. A conversation is its file; the question is written to it before it is answered.

open     model, adapters, backend, precision: load what is not in memory → {"opened"}
use      the same, and answerer: make it answer → {"opened", "ms"}
answer   the same, and conversation, answerers, leading, sampling: answer its open question → {"opened", "turns"}

Before the result: "progress" (text, done), "note" (text), "opened", "begin" (adapter, ms), "text" (adapter, piece, tokens
so far, seconds since the first), "turn" (an answer as it was saved). "names" are the names of the adapters in memory.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_local.adapters.library import base_of, find, rope_factor_of
from finetune_local.chat.conversations import open_one
from finetune_local.inference.sampling import Sampling
from finetune_local.models.resolve import resolve
from finetune_local.runtime.rpc import Handler, RpcRequest, serve
from finetune_local.spec.run import DEFAULT_MODEL
from finetune_local.system.fields import parse
from finetune_local.system.files import stamp
from finetune_local.system.messages import msg
from finetune_local.system.paths import Home

if TYPE_CHECKING:
    from finetune_local.chat.session import Turn
    from finetune_local.inference.engine import Opened

IDLE_SECONDS = 900.0
_SPARE = 3
"""Adapters that stay in memory although the last request did not name them."""
_EVERY = 0.05
"""Seconds between two messages with text."""
_OF_THE_MODEL = (".safetensors", ".json", ".jinja")


@dataclass
class Loaded:
    """The model in memory, the request it was loaded for (`wanted`), and the seconds that loading took."""

    opened: Opened
    wanted: Mapping[str, Any]
    seconds: float

    def facts(self) -> Mapping[str, Any]:
        """What the window shows of it."""
        opened = self.opened
        return {
            "model": opened.model.name,
            "path": str(opened.model.path),
            "backend": opened.backend,
            "device": opened.session.device.name,
            "precision": opened.session.precision,
            "context_length": opened.model.context_length,
            "adapters": list(opened.adapters),
            "active": opened.active,
            "memory_bytes": opened.session.memory().current_bytes,
            "load_seconds": round(self.seconds, 2),
        }


class Holder:
    """Answers requests and keeps the model in memory."""

    def __init__(self, home: Home) -> None:
        """Loads nothing yet."""
        self.home = home
        self._held: Loaded | None = None

    def handlers(self) -> dict[str, Handler]:
        """For serve()."""
        return {"open": self.open, "use": self.use, "answer": self.answer}

    def open(self, request: RpcRequest) -> Mapping[str, Any]:
        """Load the base and the adapters of a request. Raises ModelError, AdapterError, SpecError, Unsupported, OutOfMemory."""
        held, names = self._ready(request)
        return {"opened": held.facts(), "names": names}

    def use(self, request: RpcRequest) -> Mapping[str, Any]:
        """Activate an adapter (None: the base); "ms" is the time of the swap, without loading."""
        held, names = self._ready(request)
        wanted = request.values.get("answerer")
        milliseconds = held.opened.activate(None if wanted is None else names[wanted])
        return {"opened": held.facts(), "names": names, "ms": milliseconds}

    def answer(self, request: RpcRequest) -> Mapping[str, Any]:
        """Answer the open question of a conversation. A cancelled answer is kept so far as it came."""
        from finetune_local.chat.session import ChatSession

        values = request.values
        history = open_one(self.home, values["conversation"])
        sampling = parse(Sampling, values.get("sampling") or {}, "sampling")
        held, names = self._ready(request)
        request.send("opened", opened=held.facts(), names=names)
        answerers = [None if name is None else names[name] for name in values["answerers"]]
        leading = None if values["leading"] is None else names[values["leading"]]
        chat, stream = ChatSession(held.opened, sampling, history=history), _Stream(request)
        if request.cancelled():
            return {"opened": held.facts(), "turns": []}
        turns = chat.answer_by(
            answerers,
            leading if leading in answerers else answerers[0],
            stream.text,
            request.cancelled,
            on_begin=stream.begin,
            on_tokens=stream.count,
            on_turn=stream.turn,
        )
        return {"opened": held.facts(), "turns": [turn.as_json() for turn in turns]}

    def _ready(self, request: RpcRequest) -> tuple[Loaded, dict[str, str]]:
        """Load what a request needs; returns it with the names in memory of the request's adapters."""
        adapters: Sequence[str] = request.values.get("adapters") or ()
        folders = {name: find(name, self.home) for name in adapters}
        held = self._base(request, folders)
        opened, active = held.opened, held.opened.active
        names: dict[str, str] = {}
        for name, folder in folders.items():
            if folder not in opened.adapters.values():
                request.send("progress", text=msg("loading adapter {name}", name=name), done=None)
            names[name] = opened.load(name, lambda text: request.send("note", text=text))
        for name in [name for name in opened.adapters if name not in names.values()][:-_SPARE]:
            opened.drop(name)
        opened.activate(active if active in opened.adapters else None)
        return held, names

    def _base(self, request: RpcRequest, adapters: Mapping[str, Path]) -> Loaded:
        from finetune_local.inference.engine import open_chat

        values, began = request.values, time.perf_counter()
        first = next(iter(adapters.values()), None)

        def progress(text: str, done: float | None) -> None:
            request.send("progress", text=text, done=done)

        made_on = None if first is None else base_of(first)
        path = resolve(values.get("model") or made_on or DEFAULT_MODEL, self.home, progress).path
        wanted: dict[str, Any] = {
            "path": path,
            "files": stamp(path, *sorted(f.name for f in path.iterdir() if f.suffix in _OF_THE_MODEL)),
            "rope_factor": 1.0 if first is None else rope_factor_of(first),
            "backend": values.get("backend") or "auto",
            "precision": values.get("precision"),
        }
        if self._held is not None and _serves(self._held, wanted):
            return self._held
        self._held = None
        gc.collect()  # the old base must be freed before the new one is loaded
        opened = open_chat(
            self.home,
            str(path),
            list(adapters)[:1],  # the first decides the precision of the base
            backend=wanted["backend"],
            precision=wanted["precision"],
            note=lambda text: request.send("note", text=text),
            progress=progress,
        )
        self._held = Loaded(opened, wanted, time.perf_counter() - began)
        return self._held


def _serves(held: Loaded, wanted: Mapping[str, Any]) -> bool:
    """Whether the loaded model is the one that a request wants; a backend or precision that it leaves open may be any."""
    same = all(held.wanted[key] == wanted[key] for key in ("path", "files", "rope_factor"))
    backend = wanted["backend"] in ("auto", held.opened.backend)
    return same and backend and wanted["precision"] in (None, held.opened.session.precision)


class _Stream:
    """Sends the text to the window, often enough to be read as it comes, but not at every token."""

    def __init__(self, request: RpcRequest) -> None:
        self._request = request
        self._pieces: list[str] = []
        self._tokens, self._first, self._sent = 0, 0.0, 0.0

    def begin(self, adapter: str | None, milliseconds: float) -> None:
        self._pieces, self._tokens = [], 0
        self._request.send("begin", adapter=adapter, ms=milliseconds)

    def count(self, _adapter: str | None, tokens: int) -> None:
        self._tokens = tokens
        if tokens == 1:
            self._first = time.monotonic()

    def text(self, adapter: str | None, piece: str) -> None:
        self._pieces.append(piece)
        if time.monotonic() - self._sent >= _EVERY:
            self._flush(adapter)

    def turn(self, turn: Turn) -> None:
        self._flush(turn.adapter)
        self._request.send("turn", turn=turn.as_json())

    def _flush(self, adapter: str | None) -> None:
        self._sent = now = time.monotonic()
        piece, self._pieces = "".join(self._pieces), []
        seconds = round(now - self._first, 3) if self._tokens else 0.0
        self._request.send("text", adapter=adapter, piece=piece, tokens=self._tokens, seconds=seconds)


if __name__ == "__main__":
    idle = float(sys.argv[2]) if len(sys.argv) > 2 else IDLE_SECONDS
    serve(Holder(Home(Path(sys.argv[1]))).handlers(), idle)
