"""The command `finetune-local`: finds the verbs beside this file. Only this module exits the process.

A verb is a file `<verb>.py` with `command: click.Command`, imported when called, and `ORDER: int`, its place in the help (without one it
comes last). Options without a verb mean `train`; no arguments at all mean `app`.
"""

from __future__ import annotations

import errno
import importlib
import json
import math
import os
import pkgutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from finetune_local import __version__
from finetune_local.system import private
from finetune_local.system.errors import DiskFull, FinetuneError, Stopped
from finetune_local.system.files import failure
from finetune_local.system.messages import carrying, message_of, msg

DEFAULT_VERB = "train"
HELPERS = ("main", "common", "progress", "spec_options")
"""Modules here that are not verbs."""

_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_ABOUT_A_PATH = (*_FORBIDDEN, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EILSEQ)
"""Errors of the system about a path the user gave and can change."""


class Verbs(click.Group):
    """Lists verbs by file name and imports only the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Verbs by name."""
        package = importlib.import_module("finetune_local.cli")
        return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name not in HELPERS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """click's, in the order a user meets the verbs."""

        def place(verb: str) -> tuple[float, str]:
            return getattr(importlib.import_module(f"finetune_local.cli.{verb}"), "ORDER", math.inf), verb

        with formatter.section("Commands"):
            verbs = sorted(self.list_commands(ctx), key=place)
            commands = [(verb, command) for verb in verbs if (command := self.get_command(ctx, verb)) is not None]
            width = formatter.width - 6 - max(len(verb) for verb in verbs)
            formatter.write_dl([(verb, command.get_short_help_str(width)) for verb, command in commands])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one verb."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = importlib.import_module(f"finetune_local.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """click's, with a suggestion for a mistyped verb."""
        if args and args[0] not in self.list_commands(ctx):
            from finetune_local.system.fields import did_you_mean

            verbs = self.list_commands(ctx)
            raise click.UsageError(
                f"there is no verb '{args[0]}'.{did_you_mean(args[0], verbs)} Known verbs: {', '.join(verbs)}.", ctx
            )
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """`finetune-local --data x` means `finetune-local train --data x`; `finetune-local` alone opens the app if it is installed."""
        if not args:
            from finetune_local.cli.app import lacking

            if (problem := lacking()) is None:
                args = ["app"]
            else:
                click.echo(f"finetune-local: {problem}\n", err=True)
        if args and args[0].startswith("-") and args[0] not in ("-h", "--help", "--version"):
            args = [DEFAULT_VERB, *args]
        return super().parse_args(ctx, args)


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Example: finetune-local --data my.jsonl --method qlora",
)
@click.version_option(__version__, prog_name="finetune-local")
def cli() -> None:
    """Fine-tune language models on this machine: offline, private, on MLX or PyTorch."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 success, 1 failure, 2 a mistake in the user's input, 130 stopped."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # Windows consoles and LANG=C would otherwise raise at the first Chinese character.
            stream.reconfigure(encoding="utf-8", errors="replace")
    with private.writing_privately():
        code = _run(words)
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    as_json = "--json" in arguments
    private.say[:] = [partial(click.echo, err=True)]
    try:
        code: Any = cli.main(args=arguments, prog_name="finetune-local", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 0
    except click.ClickException as error:
        if as_json:
            _print_error("UsageError", error.format_message())
        error.show()
        return error.exit_code
    except FinetuneError as error:
        if as_json and not isinstance(error, Stopped):  # a stopped run's last line is its summary
            _print_error(error.code, message_of(error))
        click.echo(f"finetune-local: {error}", err=True)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("finetune-local: stopped", err=True)
        return 130
    except BrokenPipeError:
        # The reader (head, less) has closed the pipe: redirect stdout, so that Python's flush at exit does not raise.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        # A path without write permission or a failing disk is not a defect of the program.
        problem = failure(error, Path(error.filename or "a file"), msg("Then run the same command again."))
        if problem is None:
            raise
        by_user = error.errno in _ABOUT_A_PATH
        message = str(problem)
        if error.errno in _FORBIDDEN:
            message = (
                f"{error.filename or 'a file'}: {error.strerror}. Choose another location, or change its permissions."
            )
        elif isinstance(problem, DiskFull):
            message = f"{error.filename or 'a file'}: {error.strerror}. Free some disk space, then run the same command again."
        if as_json:
            _print_error("UserError" if by_user else problem.code, message)
        click.echo(f"finetune-local: {message}", err=True)
        return 2 if by_user else 1


def _print_error(kind: str, message: str) -> None:
    click.echo(json.dumps(carrying({"error": kind, "message": message}), ensure_ascii=False))
