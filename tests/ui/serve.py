"""The window's server alone, for tests: `python tests/ui/serve.py HOME`. Prints its port, then a launch link for each line it reads."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from finetune_local.gui.http.server import Server
from finetune_local.gui.shell.context import Context
from finetune_local.system.paths import Home


def main() -> None:
    home = Home(Path(sys.argv[1]))
    server = Server(home, Context(home))
    print(server.port, flush=True)  # noqa: T201

    def hand_out() -> None:
        for _ in sys.stdin:
            print(server.access.link(), flush=True)  # noqa: T201
        server.stop()

    threading.Thread(target=hand_out, daemon=True).start()
    server.run()


if __name__ == "__main__":
    main()
