"""A child process that answers requests: what holds a model or a tokenizer in memory for the window, so that its server does not.

Both sides speak JSON lines: {"id", "do", ...} to the child, {"id", "event", ...} back; {"stop": id} asks it to leave a
request. A request ends with an event "result" or "error". The child ends when its input does, so it never outlives whoever
asks, and by itself after a while without requests, so that memory nobody uses is given back; a request that comes just then
goes to a new one.

This is for what is looked at while it happens (answers, previews). Work that must survive a closed window is a job.
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

from finetune_local.runtime.process_folder import command_of, environment
from finetune_local.system import errors
from finetune_local.system.errors import FinetuneError, WorkerDied
from finetune_local.system.messages import as_message, carried, carrying, message_of, msg
from finetune_local.system.private import write_privately
from finetune_local.system.untrusted.text import ForeignTextError, parse_json_object

Event = dict[str, Any]
_LAST_LINES = 3


class RpcRequest:
    """One request as the child sees it: what was asked, a way to tell something meanwhile, and whether to leave off."""

    def __init__(self, values: Mapping[str, Any], write: Callable[[Event], None]) -> None:
        self.values, self._write = dict(values), write
        self._stopped = threading.Event()

    def send(self, event: str, **facts: Any) -> None:
        """Send something on the way to the result."""
        self._write({"id": self.values["id"], "event": event, **facts})

    def cancelled(self) -> bool:
        """Whether whoever asked no longer wants the rest."""
        return self._stopped.is_set()

    def cancel(self) -> None:
        """For the reader of the input."""
        self._stopped.set()


Handler = Callable[[RpcRequest], Any]

MOST_NESTED = 400
"""Depth of what the two say to each other: rows of data are shown as they are."""


def serve(handlers: Mapping[str, Handler], idle_seconds: float) -> None:
    """The child's main loop: one request at a time, until the input ends or nobody has asked for `idle_seconds`."""
    write_privately()
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", newline="\n")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not come between the lines
    waiting: queue.Queue[RpcRequest | None] = queue.Queue()
    calls: dict[int, RpcRequest] = {}
    lock = threading.Lock()

    def write(event: Event) -> None:
        with lock:
            out.write(json.dumps(carrying(event), ensure_ascii=False) + "\n")
            out.flush()

    def read() -> None:
        for line in os.fdopen(sys.stdin.fileno(), encoding="utf-8", newline="\n"):
            values = carried(parse_json_object(line, MOST_NESTED))
            if "stop" in values:
                if (running := calls.get(values["stop"])) is not None:
                    running.cancel()
                continue
            calls[values["id"]] = call = RpcRequest(values, write)
            waiting.put(call)
        for call in list(calls.values()):
            call.cancel()
        waiting.put(None)

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            call = waiting.get(timeout=idle_seconds)
        except queue.Empty:
            return
        if call is None:
            return
        write(_answered(handlers, call))
        calls.pop(call.values["id"], None)


def _answered(handlers: Mapping[str, Handler], call: RpcRequest) -> Event:
    try:
        return {"id": call.values["id"], "event": "result", "value": handlers[call.values["do"]](call)}
    except FinetuneError as error:
        return {"id": call.values["id"], "event": "error", "error": type(error).__name__, "message": message_of(error)}
    except Exception as error:  # noqa: BLE001 - the child lives on; whoever asked gets the traceback of the defect
        trace = "".join(traceback.format_exception(error))
        return {
            "id": call.values["id"],
            "event": "error",
            "error": "",
            "message": message_of(error),
            "traceback": trace,
        }


class RpcClient:
    """The parent's side. Any thread may ask; requests are answered one after the other."""

    def __init__(self, module: str, arguments: tuple[str, ...], log: Path) -> None:
        """Nothing is started yet: the child comes with the first request, and again after it has ended."""
        self._module, self._arguments, self.log = module, arguments, log
        self._process: subprocess.Popen[str] | None = None
        self._queues: dict[int, queue.Queue[Event]] = {}
        """Of the process that is there now: another one has others."""
        self._number = 0
        self._lock = threading.Lock()

    @property
    def running(self) -> bool:
        """Whether the child is there."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The child's process id."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def ask(self, do: str, **values: Any) -> Any:
        """A request's result; what is told on the way is passed over. Raises what the child raised, WorkerDied."""
        return self.follow(do, **values).results()

    def follow(self, do: str, **values: Any) -> RpcCall:
        """The same, event by event; the generator's return value is the result. Closing it asks the child to leave off."""
        return RpcCall(self, do, values)

    def close(self) -> None:
        """End the child: its input ends, and after a moment it is killed."""
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

    def send(self, do: str, values: Mapping[str, Any]) -> tuple[int, queue.Queue[Event]]:
        """Put a request to the child, starting it where it is not there; its number and where its events come."""
        with self._lock:
            for again in (True, False):
                process = self._started()
                self._number += 1
                number, events = self._number, queue.Queue[Event]()
                self._queues[number] = events
                try:
                    assert process.stdin is not None
                    process.stdin.write(
                        json.dumps(carrying({"id": number, "do": do, **values}), ensure_ascii=False) + "\n"
                    )
                    process.stdin.flush()
                    return number, events
                except (OSError, ValueError):  # it ended just now, being idle
                    self._queues.pop(number, None)
                    process.wait()
                    if not again:
                        raise self.died() from None
        raise AssertionError("not reached")

    def stop(self, number: int) -> None:
        """Ask the child to leave off a request."""
        process = self._process
        if process is not None and process.stdin is not None:
            with self._lock, suppress(OSError, ValueError):
                process.stdin.write(json.dumps({"stop": number}) + "\n")
                process.stdin.flush()

    def forget(self, number: int) -> None:
        """Nobody listens to a request any more."""
        self._queues.pop(number, None)

    def died(self) -> WorkerDied:
        """What to say of a child that ended in the middle of a request."""
        try:
            lines = [line for line in self.log.read_text("utf-8", "replace").splitlines() if line.strip()]
        except OSError:
            lines = []
        said = (
            msg(". Its last words: ") + " | ".join(lines[-_LAST_LINES:])
            if lines
            else msg(" (killed, or out of memory)")
        )
        return WorkerDied(
            msg("the process that held the model ended without a word{said}. Try again: it is started anew.", said=said)
        )

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
                start_new_session=os.name != "nt",  # Ctrl-C in the server's terminal is the server's
            )
        self._process, self._queues = process, {}
        assert process.stdout is not None
        threading.Thread(target=_read, args=(process.stdout, process, self._queues), daemon=True).start()
        return process


def _read(lines: TextIO, process: subprocess.Popen[str], queues: Mapping[int, queue.Queue[Event]]) -> None:
    """Hand out what a child says; at its end whoever still waits is told the exit code."""
    for line in lines:
        try:
            event = carried(parse_json_object(line, MOST_NESTED))
        except ForeignTextError:  # it says what nobody understands: whoever waits is told that it ended
            process.kill()
            break
        if (waiting := queues.get(event["id"])) is not None:
            waiting.put(event)
    code = process.wait()
    lines.close()
    with suppress(OSError, ValueError):
        assert process.stdin is not None
        process.stdin.close()
    for waiting in list(queues.values()):
        waiting.put({"event": "ended", "code": code})


class RpcCall:
    """A request under way: iterate over its events. What next() ends with carries the result."""

    def __init__(self, client: RpcClient, do: str, values: Mapping[str, Any]) -> None:
        self._client, self._do, self._values = client, do, values
        self._number, self._events = client.send(do, values)
        self._done = self._answered = False
        self.began = time.monotonic()

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        if self._done:
            raise StopIteration
        event = self._events.get()
        if event["event"] == "ended" and event["code"] == 0 and not self._answered:
            # It was idle, and had stopped to listen when the request came.
            self._answered = True
            self._number, self._events = self._client.send(self._do, self._values)
            event = self._events.get()
        if event["event"] == "ended":
            self._end()
            raise self._client.died()
        self._answered = True
        if event["event"] == "result":
            self._end()
            raise StopIteration(event["value"])
        if event["event"] == "error":
            self._end()
            raise error_of(event)
        return event

    def results(self) -> Any:
        """Wait for the result, whatever is told on the way."""
        while True:
            try:
                next(self)
            except StopIteration as end:
                return end.value

    def stop(self) -> None:
        """Ask the child to leave off; its result still comes, with what it had by then."""
        if not self._done:
            self._client.stop(self._number)

    def close(self) -> None:
        """Nobody wants the rest."""
        self.stop()
        self._end()

    def _end(self) -> None:
        self._done = True
        self._client.forget(self._number)


def error_of(event: Mapping[str, Any]) -> Exception:
    """The error that an event or a line of events.jsonl tells of; a defect comes as a RuntimeError with its traceback."""
    kind = getattr(errors, str(event.get("error")), None)
    if isinstance(kind, type) and issubclass(kind, FinetuneError):
        return kind(as_message(event["message"]))
    return RuntimeError(event.get("traceback") or event.get("message") or "unknown")
