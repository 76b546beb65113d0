"""A child for tests/unit/test_service.py: `python -m answering IDLE_SECONDS`."""

from __future__ import annotations

import sys
import time

from finetune_local.runtime.rpc import Call, serve
from finetune_local.system.errors import DataError


def count(call: Call) -> None:
    for number in range(call.values["to"]):
        call.tell("number", n=number)


def refuse(call: Call) -> None:
    raise DataError("x.jsonl: the file is empty.")


def defect(call: Call) -> float:
    return 1 / 0


def say(call: Call) -> str:
    print("a library says hello", flush=True)  # noqa: T201
    return "done"


def wait(call: Call) -> str:
    call.tell("waiting")
    until = time.monotonic() + call.values["seconds"]
    while time.monotonic() < until:
        if call.interrupted():
            return "interrupted"
        time.sleep(0.02)
    return "done"


if __name__ == "__main__":
    handlers = {
        "count": count,
        "echo": lambda call: call.values["word"],
        "refuse": refuse,
        "defect": defect,
        "print": say,
        "wait": wait,
    }
    serve(handlers, float(sys.argv[1]))
