"""The child's side of RPC: a process that holds a model or a tokenizer in memory and answers requests on its standard input.

See runtime/rpc.py for the other side and for the messages.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from finetune_local.runtime.rpc import MOST_NESTED, Message
from finetune_local.system.errors import FinetuneError
from finetune_local.system.messages import carried, carrying, message_of
from finetune_local.system.private import write_privately
from finetune_local.system.untrusted.text import parse_json_object


class RpcRequest:
    """One request: its values, a way to send messages before the result, and whether the caller has cancelled it."""

    def __init__(self, values: Mapping[str, Any], write: Callable[[Message], None]) -> None:
        self.values, self._write = dict(values), write
        self._cancelled = threading.Event()

    def send(self, event: str, **facts: Any) -> None:
        """Send a message before the result."""
        self._write({"id": self.values["id"], "event": event, **facts})

    def cancelled(self) -> bool:
        """Whether the caller no longer wants the rest."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """For the reader of the input."""
        self._cancelled.set()


Handler = Callable[[RpcRequest], Any]
"""Answers a request; the result is plain JSON."""


def serve(handlers: Mapping[str, Handler], idle_seconds: float) -> None:
    """The child's main loop: one request at a time, until the input ends or there was no request for `idle_seconds`."""
    write_privately()
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", newline="\n")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not come between the messages
    waiting: queue.Queue[RpcRequest | None] = queue.Queue()
    requests: dict[int, RpcRequest] = {}
    lock = threading.Lock()

    def write(message: Message) -> None:
        with lock:
            out.write(json.dumps(carrying(message), ensure_ascii=False) + "\n")
            out.flush()

    def read() -> None:
        for line in os.fdopen(sys.stdin.fileno(), encoding="utf-8", newline="\n"):
            values = carried(parse_json_object(line, MOST_NESTED))
            if "cancel" in values:
                if (running := requests.get(values["cancel"])) is not None:
                    running.cancel()
                continue
            requests[values["id"]] = request = RpcRequest(values, write)
            waiting.put(request)
        for request in list(requests.values()):
            request.cancel()
        waiting.put(None)

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            request = waiting.get(timeout=idle_seconds)
        except queue.Empty:
            return
        if request is None:
            return
        write({"id": request.values["id"], **_answer(handlers, request)})
        requests.pop(request.values["id"], None)


def _answer(handlers: Mapping[str, Handler], request: RpcRequest) -> Message:
    try:
        return {"event": "result", "value": handlers[request.values["procedure"]](request)}
    except FinetuneError as error:
        return {"event": "error", "error": error.code, "message": message_of(error)}
    except Exception as error:  # noqa: BLE001 - the child lives on; the caller gets the traceback of the defect
        trace = "".join(traceback.format_exception(error))
        return {"event": "error", "error": "", "message": message_of(error), "traceback": trace}
