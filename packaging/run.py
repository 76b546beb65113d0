#!/usr/bin/env python3
"""Set up finetune-local in a virtual environment of this checkout, and run it. Needs only Python 3.11 or newer.

    python3 packaging/run.py demo              train on the shipped example; compare the answers before and after
    python3 packaging/run.py test              every check: lint, types, import contracts, tests
    python3 packaging/run.py test --quick      lint, types, import contracts and unit tests without an engine: two minutes
    python3 packaging/run.py setup             only install
    python3 packaging/run.py cli ARGUMENTS     install if needed, then `finetune-local ARGUMENTS`

Options, before the command's name or after it (for `cli`: before):
    --venv DIR       the virtual environment (default: .venv in the checkout)
    --engine NAME    auto (default), mlx, cuda or cpu
"""

import sys

OLDEST = (3, 11)

# This file is read by any Python, so that an old one gets a sentence instead of a syntax error.
if sys.version_info < OLDEST:
    MESSAGE = (
        "finetune-local needs Python {0}.{1} or newer, but this is Python {2}.{3} ({4}).\n"
        "Install a newer one (https://www.python.org/downloads/, `brew install python`, `sudo apt install python3.12 "
        "python3.12-venv` or `winget install Python.Python.3.12`), then run the same command with it, such as\n"
        "    python3.12 {5}"
    )
    sys.exit(MESSAGE.format(*(OLDEST + tuple(sys.version_info[:2]) + (sys.executable, " ".join(sys.argv)))))

if __name__ == "__main__":
    from commands import main

    main(__doc__ or "")
