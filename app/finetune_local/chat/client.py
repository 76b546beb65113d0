"""The window's side of chat/worker.py: calls in progress and their partial answers.

A call runs in a thread of the server and does not depend on the page that started it, so a reloaded page finds it again. A
conversation has one call at a time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from finetune_local.runtime.rpc import Message, RpcCall, RpcClient
from finetune_local.system.errors import SpecError, WorkerDied
from finetune_local.system.messages import msg

Phase = Literal["waiting", "loading", "answering", "ended"]

_PATIENCE = 8.0
"""Seconds to wait for cancelled answers before the model is unloaded."""


@dataclass
class PartialAnswer:
    """An answer so far. `seconds` count from its first token; `turn` is set when the answer is complete."""

    text: str = ""
    tokens: int = 0
    seconds: float = 0.0
    begun: bool = False
    swap_ms: float = 0.0
    turn: Mapping[str, Any] | None = None


@dataclass
class ChatCall:
    """A call to the worker. Fields may be read at any time; wait() returns on a change. `answers` are by adapter (None: the base)."""

    procedure: str
    conversation: str
    values: Mapping[str, Any]
    answers: dict[str | None, PartialAnswer] = field(default_factory=dict)
    phase: Phase = "waiting"
    doing: str = ""
    done: float | None = None
    notes: list[str] = field(default_factory=list)
    error: Exception | None = None
    result: Mapping[str, Any] | None = None
    stopped: bool = False
    began: float = field(default_factory=time.monotonic)
    version: int = 0

    def __post_init__(self) -> None:
        self._call: RpcCall | None = None
        self._changed = threading.Condition()
        self._names: dict[str | None, str | None] = {}

    @property
    def ended(self) -> bool:
        """Whether the call has ended."""
        return self.phase == "ended"

    def wait(self, version: int, seconds: float) -> int:
        """Wait at most `seconds` until the version differs from `version`; returns the current version."""
        with self._changed:
            self._changed.wait_for(lambda: self.version != version, seconds)
            return self.version

    def stop(self) -> None:
        """Cancel the call; the answer so far is kept."""
        self._note(stopped=True)
        if self._call is not None:
            self._call.cancel()

    def run(self, client: RpcClient, on_opened: Callable[[Mapping[str, Any]], None]) -> None:
        """Make the call and follow it to its end; runs in its own thread. `on_opened` receives the facts of the loaded model."""
        try:
            self._call = client.stream(self.procedure, **self.values)
            if self.stopped:
                self._call.cancel()
            self._follow(self._call, on_opened)
        except WorkerDied as error:
            self.error = None if self.stopped else error
        except Exception as error:  # noqa: BLE001 - shown in the conversation
            self.error = error
        self._note(phase="ended")

    def _follow(self, call: RpcCall, on_opened: Callable[[Mapping[str, Any]], None]) -> None:
        while True:
            try:
                event = next(call)
            except StopIteration as end:
                self.result = end.value
                on_opened(end.value["opened"])
                return
            if event["event"] == "opened":
                on_opened(event["opened"])
            self._take(event)

    def _take(self, event: Message) -> None:
        match event["event"]:
            case "progress":
                self._note(phase="loading", doing=event["text"], done=event["done"])
            case "note":
                self.notes.append(event["text"])
            case "opened":
                self._names = {in_memory: requested for requested, in_memory in event["names"].items()}
                self._note(phase="answering")
            case "begin":
                growing = self._of(event)
                growing.begun, growing.swap_ms = True, event["ms"]
                self._note(phase="answering")
            case "text":
                growing = self._of(event)
                growing.text += event["piece"]
                growing.tokens, growing.seconds = event["tokens"], event["seconds"]
                self._note()
            case "turn":
                self._of(event["turn"]).turn = event["turn"]
                self._note()

    def _of(self, event: Mapping[str, Any]) -> PartialAnswer:
        name = event["adapter"]
        return self.answers.setdefault(self._names.get(name, name), PartialAnswer())

    def _note(self, **changed: Any) -> None:
        with self._changed:
            for name, value in changed.items():
                setattr(self, name, value)
            self.version += 1
            self._changed.notify_all()


class ChatClient:
    """All chat calls of one server, and what is known of the worker's loaded model."""

    def __init__(self, client: RpcClient) -> None:
        """Calls nothing yet."""
        self._client = client
        self._calls: dict[str, ChatCall] = {}
        self._lock = threading.Lock()
        self._opened: tuple[int | None, Mapping[str, Any]] | None = None

    @property
    def opened(self) -> Mapping[str, Any] | None:
        """The worker's loaded model, as last reported (worker.Loaded.facts()); None if none is loaded."""
        if self._opened is None or self._opened[0] is None or self._opened[0] != self._client.pid:
            return None  # that process has ended
        return self._opened[1]

    def remember(self, facts: Mapping[str, Any]) -> None:
        """Record the facts of the loaded model."""
        self._opened = self._client.pid, facts

    def of(self, conversation: str) -> ChatCall | None:
        """The newest call for a conversation, failed ones included, until it is forgotten."""
        return self._calls.get(conversation)

    def active(self) -> list[ChatCall]:
        """The calls that have not ended."""
        return [call for call in list(self._calls.values()) if not call.ended]

    def forget(self, conversation: str) -> None:
        """Forget a call that has ended."""
        call = self._calls.get(conversation)
        if call is not None and call.ended:
            self._calls.pop(conversation, None)

    def begin(
        self, procedure: str, conversation: str, values: Mapping[str, Any], answerers: Sequence[str | None] = ()
    ) -> ChatCall:
        """Start a call. Raises SpecError if the conversation is being answered."""
        with self._lock:
            self.check_free(conversation)
            self.forget(conversation)
            call = ChatCall(procedure, conversation, values, {name: PartialAnswer() for name in answerers})
            self._calls[conversation] = call
        threading.Thread(target=call.run, args=(self._client, self.remember), name="call", daemon=True).start()
        return call

    def check_free(self, conversation: str) -> None:
        """Raise SpecError if a conversation is being answered."""
        call = self._calls.get(conversation)
        if call is not None and not call.ended:
            raise SpecError(msg("this conversation is being answered. Wait for the answer, or stop it."))

    def stop(self, call: ChatCall) -> None:
        """Cancel a call. Loading cannot be cancelled, so the process is ended if it is loading a model for this call alone."""
        call.stop()
        if call.phase == "loading" and self.active() == [call]:
            self._client.close()

    def unload(self) -> None:
        """Free the memory: cancel the calls in progress, keeping their partial answers, and end the process."""
        until = time.monotonic() + _PATIENCE
        for call in self.active():
            call.stop()
        for call in self.active():
            while not call.ended and time.monotonic() < until:
                call.wait(call.version, 0.2)
        self._client.close()
        self._opened = None
