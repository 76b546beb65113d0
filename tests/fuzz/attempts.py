"""Tries one target with inputs of consecutive seeds, in a process of its own: `python -m fuzz.attempts TARGET SEED COUNT FOLDER`.

A target is a module in fuzz/targets with `prepare(folder) -> Any`, called once, and `attempt(prepared, draw, folder) -> None`,
which makes one input from `draw` in an empty folder and gives it to the app. It may return, or raise a FinetuneError whose message
reads as a sentence; whatever else it raises is a fault, as are more than 10 seconds, more than 2 GB, and the death of the process.
A line of JSON is printed per seed before it is tried ("begin") and per fault, so that the parent knows which seed killed it.
"""

from __future__ import annotations

import importlib
import json
import random
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from finetune_local.system.errors import FinetuneError

SECONDS = 10
MOST_BYTES = 2 * 10**9


class TookTooLong(BaseException):
    """Not an Exception, so that no handler of the app takes it for its own."""


def main() -> None:
    """Try the seeds that the command line names."""
    name, first, count, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    target = importlib.import_module(f"fuzz.targets.{name}")
    shared = folder / "prepared"
    shared.mkdir(parents=True, exist_ok=True)
    prepared = target.prepare(shared)
    refused = 0
    for seed in range(first, first + count):
        place = folder / "input"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        _say("begin", seed=seed)
        try:
            with _limited():
                target.attempt(prepared, random.Random(f"{name} {seed}"), place)
        except FinetuneError as error:
            refused += 1
            if not str(error).strip() or not _writable(str(error)):
                _say("fault", seed=seed, what=f"its message cannot be shown: {str(error)!r:.300}")
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # noqa: BLE001 - whatever it is, it is what we look for
            _say("fault", seed=seed, what=traceback.format_exc(limit=-6))
    _say("end", tried=count, refused=refused, peak=_peak())


def _peak() -> int:
    """Most bytes this process has held. What getrusage() tells begins on Linux with the size of the process that started this one."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (one for one in status.read_text("ascii").splitlines() if one.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


@contextmanager
def _limited() -> Iterator[None]:
    def late(number: int, frame: FrameType | None) -> None:
        raise TookTooLong(f"more than {SECONDS} seconds")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


def _writable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _say(event: str, /, **values: object) -> None:
    print(json.dumps({"event": event, **values}), flush=True)  # noqa: T201 - the protocol of this child


if __name__ == "__main__":
    main()
