"""The process that answers chats for the window: `python -m finetune_local.chat.worker HOME [IDLE_SECONDS]`; see client.py.

It keeps one base with several adapters in memory. Every request names everything it needs (conversation, model, adapters, answerers),
so that windows do not interfere. The question is in the conversation's file before the request.

open     model, adapters, backend, precision: load what is not in memory → {"opened", "names"}
use      the same, and answerer: activate it → {"opened", "names", "ms"}
answer   the same, and conversation, answerers, leading, sampling: answer its open question → {"opened", "turns"}

Messages before the result: "progress" (text, done), "note" (text), "opened", "begin" (adapter, ms), "text" (adapter, piece, tokens
so far, seconds since the first), "turn" (a saved answer). "names" maps requested adapters to their names in memory.
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
"""Number of adapters kept in memory beyond those of the last request."""
_EVERY = 0.05
"""The least seconds between two messages with text."""
_OF_THE_MODEL = (".safetensors", ".json", ".jinja")


@dataclass
class Loaded:
    """The model in memory, the options it was loaded with, and the loading time in seconds."""

    opened: Opened
    options: Mapping[str, Any]
    seconds: float

    def facts(self) -> Mapping[str, Any]:
        """What the window shows of the model."""
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


class ChatServer:
    """Processes requests and keeps the model in memory."""

    def __init__(self, home: Home) -> None:
        """Loads nothing yet."""
        self.home = home
        self._loaded: Loaded | None = None

    def handlers(self) -> dict[str, Handler]:
        """The procedures, for serve()."""
        return {"open": self.open, "use": self.use, "answer": self.answer}

    def open(self, request: RpcRequest) -> Mapping[str, Any]:
        """Load the base and the adapters of a request. Raises ModelError, AdapterError, SpecError, Unsupported, OutOfMemory."""
        loaded, names = self._ready(request)
        return {"opened": loaded.facts(), "names": names}

    def use(self, request: RpcRequest) -> Mapping[str, Any]:
        """Activate an adapter (None: the base). "ms" is the time of the switch, without loading."""
        loaded, names = self._ready(request)
        answerer = request.values.get("answerer")
        milliseconds = loaded.opened.activate(None if answerer is None else names[answerer])
        return {"opened": loaded.facts(), "names": names, "ms": milliseconds}

    def answer(self, request: RpcRequest) -> Mapping[str, Any]:
        """Answer the open question of a conversation. The text of a cancelled answer is kept."""
        from finetune_local.chat.session import ChatSession

        values = request.values
        history = open_one(self.home, values["conversation"])
        sampling = parse(Sampling, values.get("sampling") or {}, "sampling")
        loaded, names = self._ready(request)
        request.send("opened", opened=loaded.facts(), names=names)
        answerers = [None if name is None else names[name] for name in values["answerers"]]
        leading = None if values["leading"] is None else names[values["leading"]]
        chat, stream = ChatSession(loaded.opened, sampling, history=history), _Stream(request)
        if request.cancelled():
            return {"opened": loaded.facts(), "turns": []}
        turns = chat.answer_by(
            answerers,
            leading if leading in answerers else answerers[0],
            stream.text,
            request.cancelled,
            on_begin=stream.begin,
            on_tokens=stream.count,
            on_turn=stream.turn,
        )
        return {"opened": loaded.facts(), "turns": [turn.as_json() for turn in turns]}

    def _ready(self, request: RpcRequest) -> tuple[Loaded, dict[str, str]]:
        """Load what a request needs; returns it with the names that its adapters have in memory."""
        adapters: Sequence[str] = request.values.get("adapters") or ()
        folders = {name: find(name, self.home) for name in adapters}
        loaded = self._base(request, folders)
        opened, active = loaded.opened, loaded.opened.active
        names: dict[str, str] = {}
        for name, folder in folders.items():
            if folder not in opened.adapters.values():
                request.send("progress", text=msg("loading adapter {name}", name=name), done=None)
            names[name] = opened.load(name, lambda text: request.send("note", text=text))
        for name in [name for name in opened.adapters if name not in names.values()][:-_SPARE]:
            opened.drop(name)
        opened.activate(active if active in opened.adapters else None)
        return loaded, names

    def _base(self, request: RpcRequest, adapters: Mapping[str, Path]) -> Loaded:
        from finetune_local.inference.engine import open_chat

        values, began = request.values, time.perf_counter()
        first = next(iter(adapters.values()), None)

        def progress(text: str, done: float | None) -> None:
            request.send("progress", text=text, done=done)

        made_on = None if first is None else base_of(first)
        path = resolve(values.get("model") or made_on or DEFAULT_MODEL, self.home, progress).path
        options: dict[str, Any] = {
            "path": path,
            "files": stamp(path, *sorted(f.name for f in path.iterdir() if f.suffix in _OF_THE_MODEL)),
            "rope_factor": 1.0 if first is None else rope_factor_of(first),
            "backend": values.get("backend") or "auto",
            "precision": values.get("precision"),
        }
        if self._loaded is not None and _serves(self._loaded, options):
            return self._loaded
        self._loaded = None
        gc.collect()  # frees the old base before the new one is loaded
        opened = open_chat(
            self.home,
            str(path),
            list(adapters)[:1],  # the first adapter decides the precision of the base
            backend=options["backend"],
            precision=options["precision"],
            note=lambda text: request.send("note", text=text),
            progress=progress,
        )
        self._loaded = Loaded(opened, options, time.perf_counter() - began)
        return self._loaded


def _serves(loaded: Loaded, options: Mapping[str, Any]) -> bool:
    """Whether the loaded model meets a request's options; an automatic backend or precision is met by any."""
    same = all(loaded.options[key] == options[key] for key in ("path", "files", "rope_factor"))
    backend = options["backend"] in ("auto", loaded.opened.backend)
    return same and backend and options["precision"] in (None, loaded.opened.session.precision)


class _Stream:
    """Sends text to the window while it is generated, but not at every token."""

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
    serve(ChatServer(Home(Path(sys.argv[1]))).handlers(), idle)
