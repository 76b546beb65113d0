"""The child of guarded.py: `python -m finetune_local.system.untrusted.guarded_child MODULE MOST_BYTES MOST_REPLY`.

Reads requests from stdin and writes replies to stdout, each a JSON object after its length (4 bytes). It ends with its input, by
the kernel's timer, or at its memory limit.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from typing import Any, BinaryIO

from finetune_local.system.messages import Message, carrying, msg
from finetune_local.system.untrusted.text import parse_json_object

HEAD = 4
"""Bytes of a message's length."""

MOST_DEPTH = 200
"""Nesting allowed in a message; the foreign text inside has its own limit."""

RESULT_TOO_LARGE = "ResultTooLarge"
_MESSAGE = 500


def main() -> None:
    """Serve requests until the input ends."""
    module_name, most_bytes, most_reply = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # output of libraries must not mix with the replies
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    _limit(most_bytes)
    module = importlib.import_module(module_name)
    prepared: dict[str, Any] = {}
    while (message := _read(sys.stdin.buffer)) is not None:
        content = _answered(module, prepared, message, most_reply)
        _timer(0.0)
        _write(out, content)


def _answered(module: Any, prepared: dict[str, Any], message: dict[str, Any], most_reply: int) -> bytes:
    key, lost = message["key"], False
    preparing, answering = message["seconds"]
    prepared.pop(message.get("drop", ""), None)
    try:
        if "setup" in message:
            lost = True
            _timer(preparing)
            prepared[key] = module.prepare(message["setup"])
            lost = False
        _timer(answering)
        value = module.answer(prepared[key], message["request"])
        refused = isinstance(value, dict) and any(isinstance(one, Message) for one in value.values())
        content = encoded(carrying({"value": value}) if refused else {"value": value})
    except BaseException as error:  # noqa: BLE001 - a panic of Rust is no Exception; all are reported to the parent
        kind = "MemoryError" if isinstance(error, MemoryError) else type(error).__name__
        content = encoded({"kind": kind, "message": line_of(error), "lost": lost})
    if len(content) > most_reply:
        return encoded(
            carrying(
                {
                    "kind": RESULT_TOO_LARGE,
                    "message": msg("its result is larger than {size} MB", size=f"{most_reply / 1e6:.0f}"),
                }
            )
        )
    return content


def line_of(error: BaseException) -> str:
    """An exception's message, short and on one line; formatting it may fail too."""
    try:
        return " ".join(str(error)[: 4 * _MESSAGE].encode("utf-8", "replace").decode("utf-8").split())[:_MESSAGE]
    except Exception:  # noqa: BLE001 - a foreign object's __str__
        return ""


def encoded(message: Any) -> bytes:
    r"""A message as JSON; lone surrogates, as in \ud800, are preserved."""
    try:
        return json.dumps(message, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(message).encode("ascii")


def _read(stream: BinaryIO) -> dict[str, Any] | None:
    head = stream.read(HEAD)
    if len(head) < HEAD:
        return None
    size = int.from_bytes(head, "little")
    body = stream.read(size)
    return parse_json_object(body, MOST_DEPTH) if len(body) == size else None


def _write(out: Any, content: bytes) -> None:
    whole = memoryview(len(content).to_bytes(HEAD, "little") + content)
    while whole:
        whole = whole[out.write(whole) :]


def _limit(most_bytes: int) -> None:
    """Limit memory, and write no core file. With 0 the parent watches the memory."""
    if sys.platform.startswith("linux"):
        import resource

        if most_bytes:
            _, hardest = resource.getrlimit(resource.RLIMIT_AS)  # keep a lower limit set by the user
            most = most_bytes if hardest == resource.RLIM_INFINITY else min(most_bytes, hardest)
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _timer(seconds: float) -> None:
    """End this process after this much CPU time, enforced by the kernel; 0 stops the timer."""
    if sys.platform != "win32":
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, seconds)


if __name__ == "__main__":
    main()
