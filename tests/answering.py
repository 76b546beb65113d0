"""A child for tests/unit/runtime/test_rpc.py: `python -m answering IDLE_SECONDS`."""

from __future__ import annotations

import sys
import time

from finetune_local.runtime.rpc import RpcRequest, serve
from finetune_local.system.errors import DataError, SpecError
from finetune_local.system.messages import msg


def count(request: RpcRequest) -> None:
    for number in range(request.values["to"]):
        request.send("number", n=number)


def refuse(request: RpcRequest) -> None:
    raise DataError("x.jsonl: the file is empty.")


def nested(request: RpcRequest) -> None:
    raise SpecError(msg("{place}: {error}", place="run.toml", error=msg("{name} is missing", name="a: b")))


def defect(request: RpcRequest) -> float:
    return 1 / 0


def say(request: RpcRequest) -> str:
    print("a library says hello", flush=True)  # noqa: T201
    return "done"


def wait(request: RpcRequest) -> str:
    request.send("waiting")
    until = time.monotonic() + request.values["seconds"]
    while time.monotonic() < until:
        if request.cancelled():
            return "cancelled"
        time.sleep(0.02)
    return "done"


if __name__ == "__main__":
    handlers = {
        "count": count,
        "echo": lambda request: request.values["word"],
        "refuse": refuse,
        "nested": nested,
        "defect": defect,
        "print": say,
        "wait": wait,
    }
    serve(handlers, float(sys.argv[1]))
