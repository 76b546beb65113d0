"""A process that answers quickly what takes a tokenizer or a look at the devices: `python -m finetune_local.gui.lookups.worker HOME`.

It imports what the window's server must not. Requests are found by listing gui/lookups/calls/: a module has `answer(request, home)`.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from functools import partial
from pathlib import Path

from finetune_local.gui.lookups import calls
from finetune_local.runtime.rpc import Handler, RpcRequest, serve
from finetune_local.system.paths import Home

IDLE_SECONDS = 600.0


def handlers(home: Home) -> dict[str, Handler]:
    """What can be asked, by the module's name; imported when it is asked."""

    def answered(name: str, request: RpcRequest) -> object:
        answer: object = importlib.import_module(f"{calls.__name__}.{name}").answer(request, home)
        return answer

    return {module.name: partial(answered, module.name) for module in pkgutil.iter_modules(calls.__path__)}


if __name__ == "__main__":
    serve(handlers(Home(Path(sys.argv[1]))), IDLE_SECONDS)
