"""RPC to a child process that keeps a model or tokenizer in memory, outside the window's server.

Messages are JSON lines: {"id", "procedure", ...} to the child, {"id", "event", ...} back. {"cancel": id} cancels a request, whose
partial result is still sent. The last message of a request has the event "result" or "error". The child exits when its input ends,
so it never outlives the caller, and after a time without requests, which frees its memory; a request that arrives at that moment is
sent to a new child.

RPC is for work that the user watches (answers, previews). Work that must survive a closed window is a job.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from finetune_local.runtime.events import exception_of
from finetune_local.runtime.start import command_of, environment
from finetune_local.runtime.worker_files import log_tail
from finetune_local.system.errors import FinetuneError, WorkerDied
from finetune_local.system.messages import carried, carrying, message_of, msg
from finetune_local.system.private import write_privately
from finetune_local.system.untrusted.text import ForeignTextError, parse_json_object

Message = dict[str, Any]

MOST_NESTED = 400
"""The deepest nesting of a message; rows of the user's data are sent unchanged."""

_ENDED = "ended"
"""Event of the local message that reports the child's end and exit code."""


class RpcClient:
    """The caller's side. Thread-safe; the child processes one request at a time."""

    def __init__(self, module: str, arguments: tuple[str, ...], log: Path) -> None:
        """The child is started by the first request, and restarted if it has ended."""
        self._module, self._arguments, self.log = module, arguments, log
        self._process: subprocess.Popen[str] | None = None
        self._queues: dict[int, queue.Queue[Message]] = {}
        """By request id, of the current child; the next child has a new dictionary."""
        self._number = 0
        self._lock = threading.Lock()

    @property
    def running(self) -> bool:
        """Whether the child is alive."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The child's process id."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def call(self, procedure: str, **values: Any) -> Any:
        """Send a request and return its result, ignoring earlier messages. Raises the child's error, WorkerDied."""
        return self.stream(procedure, **values).result()

    def stream(self, procedure: str, **values: Any) -> RpcCall:
        """Send a request; returns an iterator over its messages (RpcCall)."""
        return RpcCall(self, procedure, values)

    def close(self) -> None:
        """Close the child's input; kill it if it does not exit within two seconds."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            with suppress(OSError, ValueError):
                assert process.stdin is not None
                process.stdin.close()
            try:
                process.wait(2)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def send(self, procedure: str, values: Mapping[str, Any]) -> tuple[int, queue.Queue[Message]]:
        """Send a request, starting the child if necessary; returns the request's id and the queue of its messages."""
        with self._lock:
            for retry in (True, False):
                process = self._started()
                self._number += 1
                number, messages = self._number, queue.Queue[Message]()
                self._queues[number] = messages
                request = {"id": number, "procedure": procedure, **values}
                try:
                    assert process.stdin is not None
                    process.stdin.write(json.dumps(carrying(request), ensure_ascii=False) + "\n")
                    process.stdin.flush()
                    return number, messages
                except (OSError, ValueError):  # the idle child has just exited
                    self._queues.pop(number, None)
                    process.wait()
                    if not retry:
                        raise self.died() from None
        raise AssertionError("not reached")

    def cancel(self, number: int) -> None:
        """Request the child to cancel a request."""
        process = self._process
        if process is not None and process.stdin is not None:
            with self._lock, suppress(OSError, ValueError):
                process.stdin.write(json.dumps({"cancel": number}) + "\n")
                process.stdin.flush()

    def forget(self, number: int) -> None:
        """Drop further messages of a request."""
        self._queues.pop(number, None)

    def died(self) -> WorkerDied:
        """The error for a child that ended during a request."""
        lines = log_tail(self.log)
        tail = msg(". Its last output: ") + " | ".join(lines) if lines else msg(" (killed, or out of memory)")
        return WorkerDied(msg("the model's process ended unexpectedly{output}. Try again to restart it.", output=tail))

    def _started(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                command_of(self._module, self._arguments),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment(),
                text=True,
                encoding="utf-8",
                start_new_session=os.name != "nt",  # Ctrl-C in the server's terminal must not reach the child
            )
        self._process, self._queues = process, {}
        assert process.stdout is not None
        threading.Thread(target=_read, args=(process.stdout, process, self._queues), daemon=True).start()
        return process


def _read(lines: TextIO, process: subprocess.Popen[str], queues: Mapping[int, queue.Queue[Message]]) -> None:
    """Distribute a child's messages to the queues of their requests; when it ends, its exit code to the unfinished ones."""
    for line in lines:
        try:
            message = carried(parse_json_object(line, MOST_NESTED))
        except ForeignTextError:  # not a message: the requests end as if the child had died
            process.kill()
            break
        if (waiting := queues.get(message["id"])) is not None:
            waiting.put(message)
    code = process.wait()
    lines.close()
    with suppress(OSError, ValueError):
        assert process.stdin is not None
        process.stdin.close()
    for waiting in list(queues.values()):
        waiting.put({"event": _ENDED, "code": code})


class RpcCall:
    """A request in progress: iterate over its messages. The StopIteration at the end carries the result."""

    def __init__(self, client: RpcClient, procedure: str, values: Mapping[str, Any]) -> None:
        self._client, self._procedure, self._values = client, procedure, values
        self._number, self._messages = client.send(procedure, values)
        self._done = self._answered = False
        self.began = time.monotonic()

    def __iter__(self) -> Iterator[Message]:
        return self

    def __next__(self) -> Message:
        if self._done:
            raise StopIteration
        message = self._messages.get()
        if message["event"] == _ENDED and message["code"] == 0 and not self._answered:
            # The idle child was exiting when the request was sent.
            self._answered = True
            self._number, self._messages = self._client.send(self._procedure, self._values)
            message = self._messages.get()
        if message["event"] == _ENDED:
            self._end()
            raise self._client.died()
        self._answered = True
        if message["event"] == "result":
            self._end()
            raise StopIteration(message["value"])
        if message["event"] == "error":
            self._end()
            raise exception_of(message["error"], message["message"], message.get("traceback", ""))
        return message

    def result(self) -> Any:
        """Wait for the result and return it, ignoring earlier messages."""
        while True:
            try:
                next(self)
            except StopIteration as end:
                return end.value

    def cancel(self) -> None:
        """Request the child to cancel; the partial result is still sent."""
        if not self._done:
            self._client.cancel(self._number)

    def close(self) -> None:
        """Cancel, and drop further messages."""
        self.cancel()
        self._end()

    def _end(self) -> None:
        self._done = True
        self._client.forget(self._number)


class RpcRequest:
    """A request as the child sees it: its values, how to send messages before the result, whether it was cancelled."""

    def __init__(self, values: Mapping[str, Any], write: Callable[[Message], None]) -> None:
        self.values, self._write = dict(values), write
        self._cancelled = threading.Event()

    def send(self, event: str, **facts: Any) -> None:
        """Send a message before the result."""
        self._write({"id": self.values["id"], "event": event, **facts})

    def cancelled(self) -> bool:
        """Whether the caller has cancelled the request."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Mark the request as cancelled; called by the thread that reads the input."""
        self._cancelled.set()


Handler = Callable[[RpcRequest], Any]
"""Processes a request; returns its result as plain JSON."""


def serve(handlers: Mapping[str, Handler], idle_seconds: float) -> None:
    """The child's main loop: process one request at a time until the input ends or no request arrives for `idle_seconds`."""
    write_privately()
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", newline="\n")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # output of libraries must not mix with the messages
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
