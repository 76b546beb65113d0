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
QUICK = ["tests/unit", "-m", "not slow and not engine", "-o", "faulthandler_timeout=0"]
"""What `test --quick` gives to pytest: unit tests that load no engine and take no minutes, in one process: a second one would
collect everything again, which costs a third more CPU time."""
KEEP_BYTECODE = {"PYTHONDONTWRITEBYTECODE": ""}
"""For the checks: without compiled modules each process that a test starts would compile the app anew."""


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
    test.add_argument(
        "--quick", action="store_true", help="lint, types, import contracts and unit tests without an engine"
    )
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
        return _check(environment, chosen.rest, chosen.quick)
    if chosen.verb == "demo":
        return demo.run(environment)
    say(f"ready: {environment.program('finetune-local')} --help")
    return 0


def _all_backends(engine: str) -> list[str]:
    """Both backends where both exist: MLX has no build for Windows."""
    if engine == "mlx":
        return ["mlx", "cpu"]
    return [engine] if platform.system() == "Windows" else [engine, "mlx"]


def _check(environment: Environment, rest: Sequence[str], quick: bool) -> int:
    """Run every check, also after one has failed; 0 where all passed. Extra arguments go to pytest, and then only it runs.

    Prints the wall time and the CPU time of each: a busy machine changes the first, not the second.
    """
    results = []
    for name, command in CHECKS:
        if rest and name != "tests":
            continue
        if name == "tests":
            workers = ["-n", str(min(os.cpu_count() or 1, 4))]
            command = [*command, *(rest or (QUICK if quick else workers))]
        say(f"{name}: {' '.join(command)}")
        begin, spent = time.monotonic(), _cpu_seconds()
        code = environment.run([environment.program(command[0]), *command[1:]], **KEEP_BYTECODE)
        results.append((name, code, time.monotonic() - begin, _cpu_seconds() - spent))
    for name, code, seconds, cpu in results:
        say(f"{name:8} {'passed' if code == 0 else f'FAILED (exit {code})'} in {seconds:.0f} s, {cpu:.0f} CPU-seconds")
    say(f"{'all':8} {sum(result[3] for result in results):.0f} CPU-seconds")
    return int(any(code for _, code, _, _ in results))


def _cpu_seconds() -> float:
    """CPU time of the child processes that have ended."""
    times = os.times()
    return times.children_user + times.children_system
