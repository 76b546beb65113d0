"""Jobs that are begun once, whichever window asks: a second wish for what is at work finds the job that does it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from finetune_local.runtime import job
from finetune_local.runtime.job import Job
from finetune_local.system.paths import Home

_beginning = threading.Lock()


def begin(
    home: Home, kind: str, arguments: Mapping[str, Any], same: Callable[[Mapping[str, Any]], object] = dict
) -> Job:
    """Begin a job, or give the one at work that is the same: of which `same(arguments)` is equal. Raises SpecError."""
    with _beginning:  # a job that has been begun is at work when start() returns, so the next one sees it
        wanted = same(arguments)
        for working in job.running(home, kind):
            if same(working.arguments) == wanted:
                return working
        return job.start(home, kind, arguments)
