"""A guarded child process for code that may hang, exhaust memory or crash: a chat template, a native parser on foreign bytes.

No guard inside a process is complete: `'a' * 10**9` in a template, a filter that pads to 10**10, a regular expression that
backtracks for hours are single calls into C, which no Python signal handler interrupts. The system can end a process in any state, so
the work runs in one, and its end becomes an exception:

    guarded = Guarded("finetune_local.data.encoding.rendering", Limits(seconds=4, most_bytes=2**30))
    setup = Setup("what the child prepares once for many requests")
    guarded.ask(request, setup)     -> that module's answer(prepared, request), with prepared = prepare(setup.value)

- Time: on POSIX the child asks the kernel for SIGPROF after `seconds` of CPU time, whose default action ends it; so an
  orphaned child ends too, and a loaded machine causes no false alarms. On every system the parent kills it after `PATIENCE` times
  as much wall time.
- Memory: RLIMIT_AS on Linux; elsewhere the parent polls the child's size several times a second.
- Replies are JSON of at most `most_reply` bytes, never a pickle: the child is trusted no more than its input.

The child starts with the first request and serves later ones; after a crash the next request starts another. Thread-safe.
"""

from __future__ import annotations

import atexit
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from finetune_local.system.messages import Message, as_message, carried, msg
from finetune_local.system.untrusted.guarded_child import HEAD, MOST_DEPTH, RESULT_TOO_LARGE, encoded
from finetune_local.system.untrusted.text import ForeignTextError, parse_json_object

PATIENCE = 4
"""Wall time allowed per CPU time, for preparing and for answering; other programs need the processor too."""

_LOOK_SECONDS = 0.2
_IDLE_LOOK_SECONDS = 1.0
_KEPT_SETUPS = 8
_NO_WINDOW = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0) | getattr(subprocess, "CREATE_NO_WINDOW", 0)


class GuardedError(Exception):
    """The work was not done. The message is the end of a sentence without a full stop: "it did not end within 4 seconds"."""


class TookTooLong(GuardedError):
    """It exceeded its CPU time."""


class TookTooMuch(GuardedError):
    """It exceeded its memory, or the size of a reply."""


class Died(GuardedError):
    """The child crashed."""


class Raised(GuardedError):
    """Python code in the child raised an exception; `kind` is its name."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}" if message else kind)
        self.kind = kind


@dataclass(frozen=True)
class Limits:
    """Limits of one request. `most_bytes` is the size of the whole child, Python included (about 50 MB)."""

    seconds: float
    most_bytes: int
    most_reply: int = 256 * 2**20
    by_address: bool = True
    """Whether Linux may limit the address space; False for libraries that reserve far more than they use, such as torch."""


class Setup:
    """What a child prepares once, such as a template or a path; sent with the first request that needs it."""

    _numbers = itertools.count()

    def __init__(self, value: str) -> None:
        self.value, self.key = value, str(next(self._numbers))


@dataclass(frozen=True)
class _Reply:
    """A child's reply: a value, or the `kind` and message of an exception; `lost` if the setup could not be prepared."""

    value: Any = None
    kind: str | None = None
    message: str = ""
    lost: bool = False


class Guarded:
    """The parent's side: a child that runs a module's `prepare(setup)` and `answer(prepared, request)`."""

    def __init__(self, module: str, limits: Limits) -> None:
        self._module, self.limits = module, limits
        self._by_address = limits.by_address and sys.platform.startswith("linux")
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._sent: OrderedDict[str, None] = OrderedDict()
        self._deadline: float | None = None
        self._allowed = limits.seconds
        self._killed: type[GuardedError] | None = None
        self._watcher: threading.Thread | None = None

    def ask(self, request: Any, setup: Setup, preparing: float | None = None, answering: float | None = None) -> Any:
        """The reply to a request; both are JSON values. A setup the child does not have is prepared first.

        `preparing` and `answering` override the limits' seconds. Raises TookTooLong, TookTooMuch, Died or Raised.
        """
        with self._lock:
            try:
                process = self._started()
            except (OSError, RuntimeError) as error:  # out of memory, files or threads
                self._end()
                raise Died(msg("no process could be started for it ({error})", error=error)) from None
            seconds = [preparing or self.limits.seconds, answering or self.limits.seconds]
            message: dict[str, Any] = {"key": setup.key, "request": request, "seconds": seconds}
            if setup.key in self._sent:
                self._sent.move_to_end(setup.key)
            else:
                self._sent[setup.key] = None
                message["setup"] = setup.value
            if len(self._sent) > _KEPT_SETUPS:
                message["drop"] = self._sent.popitem(last=False)[0]
            self._killed = None
            self._allowed = max(seconds) if "setup" in message else seconds[1]
            self._deadline = time.monotonic() + 2 * self._allowed * PATIENCE
            try:
                reply = self._exchanged(process, encoded(message))
            except BaseException:  # also Ctrl-C: a late reply must not be taken for the next request's
                self._end()
                raise
            finally:
                self._deadline = None
            if reply.kind is None:
                return reply.value
            if reply.kind == "MemoryError":
                self._end()  # its remaining memory is fragmented
                raise TookTooMuch(self._too_much())
            if reply.kind == RESULT_TOO_LARGE:
                raise TookTooMuch(as_message(reply.message))
            if reply.lost:
                self._sent.pop(setup.key, None)  # its preparation failed, so the child does not have it
            raise Raised(reply.kind, reply.message)

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._end()

    def _exchanged(self, process: subprocess.Popen[bytes], message: bytes) -> _Reply:
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(len(message).to_bytes(HEAD, "little") + message)
            process.stdin.flush()
            head = process.stdout.read(HEAD)
            size = int.from_bytes(head, "little")
            if size > self.limits.most_reply:
                raise TookTooMuch(
                    msg("its result is larger than {size} MB", size=f"{self.limits.most_reply / 1e6:.0f}")
                )
            body = process.stdout.read(size) if len(head) == HEAD else b""
        except OSError:
            head, size, body = b"", 0, b""
        if len(head) < HEAD or len(body) < size:
            raise self._how_it_ended(process)
        try:
            return _Reply(**carried(parse_json_object(body, MOST_DEPTH)))
        except ForeignTextError as error:
            raise Died(msg("its result cannot be read: {error}", error=error)) from None

    def _how_it_ended(self, process: subprocess.Popen[bytes]) -> GuardedError:
        try:
            code = process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if self._killed is TookTooMuch:
            return TookTooMuch(self._too_much())
        if self._killed is TookTooLong or (hasattr(signal, "SIGPROF") and code == -signal.SIGPROF):
            return TookTooLong(msg("it did not finish within {number} seconds", number=f"{self._allowed:.0f}"))
        if code in (-getattr(signal, "SIGABRT", 6), -getattr(signal, "SIGKILL", 9)):
            # How Rust and C end when memory is denied, and the system's out-of-memory killer.
            return TookTooMuch(msg("its process was killed, most likely because memory ran out ({code})", code=code))
        return Died(msg("its process crashed ({code})", code=code))

    def _too_much(self) -> Message:
        return msg("it takes more than {size} GB of memory", size=f"{self.limits.most_bytes / 1e9:.1f}")

    def _started(self) -> subprocess.Popen[bytes]:
        if self._owner != os.getpid():  # after a fork the child belongs to the other process
            self._process, self._owner, self._watcher = None, os.getpid(), None
        if self._process is None or self._process.poll() is not None:
            self._end()
            limits = [str(self.limits.most_bytes if self._by_address else 0), str(self.limits.most_reply)]
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "finetune_local.system.untrusted.guarded_child", self._module, *limits],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=_environment(),
                start_new_session=os.name != "nt",
                creationflags=_NO_WINDOW,
            )
            atexit.register(self.close)
        if self._watcher is None or not self._watcher.is_alive():
            self._watcher = threading.Thread(target=self._watch, daemon=True)
            self._watcher.start()
        return self._process

    def _watch(self) -> None:
        """Kill the child if it is late, or too large where the system sets no limit."""
        while (process := self._process) is not None and process.poll() is None:
            time.sleep(_IDLE_LOOK_SECONDS if self._deadline is None else _LOOK_SECONDS)
            deadline = self._deadline
            if deadline is None:
                continue
            if time.monotonic() > deadline:
                self._killed = TookTooLong
                process.kill()
            elif not self._by_address and _size_of(process.pid) > self.limits.most_bytes:
                self._killed = TookTooMuch
                process.kill()

    def _end(self) -> None:
        process, self._process = self._process, None
        self._sent.clear()
        atexit.unregister(self.close)
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                assert pipe is not None
                pipe.close()


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONUTF8": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


def _size_of(pid: int) -> int:
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0
