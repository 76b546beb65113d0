"""The receivers' scripts run in the test's own process, where importing their libraries costs nothing any more.

That they run apart, with nothing of the app imported, has tests of its own (tests/conformance/test_receivers.py).
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from finetune_local.export.engines.process import ReceiverReply, Request, read_reply


def answered_here(worker: Path, needs: Sequence[str], request: Request) -> ReceiverReply:
    """In the place of receivers.process.ask()."""
    if missing := [name for name in needs if importlib.util.find_spec(name) is None]:
        return ReceiverReply(absent=f"{missing[0]} is not installed")
    spec = importlib.util.spec_from_file_location(worker.stem, worker)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with tempfile.TemporaryDirectory() as place:
        try:
            reply = module.answer(json.loads(request.document()), Path(place))
        except Exception as error:  # noqa: BLE001 - as the script's main() does
            reply = {"error": f"{type(error).__name__}: {error}"}
        (Path(place) / "reply.json").write_text(json.dumps(reply), "utf-8")
        return read_reply(Path(place), 0, "")
