"""The commands of run.py: demo, test, setup, cli."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import demo
from engine import ENGINES, NoEngine, choose
from environment import ROOT, Environment, SetupFailed, say

CHECKS = (
    ("lint", ["ruff", "check"]),
    ("format", ["ruff", "format", "--check"]),
    ("types", ["mypy"]),
    ("imports", ["lint-imports"]),
    ("tests", ["pytest", "-q"]),
)


def main(help: str) -> None:  # noqa: A002 - argparse's word
    """Read the command line and leave with the command's exit code."""
    parser = argparse.ArgumentParser("run.py", description=help, formatter_class=argparse.RawDescriptionHelpFormatter)
    options = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    for place in (parser, options):
        place.add_argument("--venv", type=Path, metavar="DIR", help="the virtual environment (default: .venv)")
        place.add_argument("--engine", choices=("auto", *ENGINES), help="default: auto")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="demo|test|setup|cli")
    for verb in ("demo", "setup"):
        verbs.add_parser(verb, parents=[options])
    test = verbs.add_parser("test", parents=[options])
    test.add_argument("rest", nargs="*", metavar="PYTEST-ARGUMENT", help="after --: passed on to pytest")
    cli = verbs.add_parser("cli", add_help=False, prefix_chars="\0")  # every option belongs to finetune-local
    cli.add_argument("rest", nargs=argparse.REMAINDER)
    chosen = parser.parse_args()
    try:
        sys.exit(_run(chosen))
    except (NoEngine, SetupFailed) as error:
        sys.exit(f"[finetune-local] {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def _run(chosen: argparse.Namespace) -> int:
    environment = Environment(Path(chosen.venv or ROOT / ".venv").absolute())
    choice = choose(chosen.engine or "auto")
    locks = [choice.engine, "app"]
    if chosen.verb == "test":
        locks = sorted({*locks, *_all_backends(choice.engine), "dev"})
    environment.ensure(choice, locks)
    if chosen.verb == "cli":
        return environment.run([environment.program("finetune-local"), *chosen.rest])
    if chosen.verb == "test":
        return _check(environment, chosen.rest)
    if chosen.verb == "demo":
        return demo.run(environment)
    say(f"ready: {environment.program('finetune-local')} --help")
    return 0


def _all_backends(engine: str) -> list[str]:
    """Both backends where both exist: MLX has no build for Windows."""
    if engine == "mlx":
        return ["mlx", "cpu"]
    return [engine] if platform.system() == "Windows" else [engine, "mlx"]


def _check(environment: Environment, rest: Sequence[str]) -> int:
    """Run every check, also after one has failed; 0 where all passed. Extra arguments go to pytest, and then only it runs."""
    results = []
    for name, command in CHECKS:
        if rest and name != "tests":
            continue
        if name == "tests":
            command = [*command, *(rest or ["-n", str(min(os.cpu_count() or 1, 4))])]
        say(f"{name}: {' '.join(command)}")
        begin = time.monotonic()
        code = environment.run([environment.program(command[0]), *command[1:]])
        results.append((name, code, time.monotonic() - begin))
    for name, code, seconds in results:
        say(f"{name:8} {'passed' if code == 0 else f'FAILED (exit {code})'} in {seconds:.0f} s")
    return int(any(code for _, code, _ in results))
