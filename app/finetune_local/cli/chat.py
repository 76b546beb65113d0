"""`chat`: a conversation in the terminal, or over a pipe, one line per question."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from finetune_local.cli.common import (
    backend_option,
    console,
    emit,
    home_option,
    json_option,
    model_option,
    note,
    precision_option,
    say,
    stdin_text,
    table,
)
from finetune_local.cli.spec_options import settings_from, settings_options
from finetune_local.inference.sampling import Sampling
from finetune_local.system import paths
from finetune_local.system.errors import SpecError, UserError
from finetune_local.system.messages import message_of, msg

if TYPE_CHECKING:
    from finetune_local.chat.session import ChatSession, Turn

ORDER = 4


@click.command("chat", short_help="Talk to a model, with adapters to swap in.")
@model_option
@click.option(
    "--adapter",
    "adapters",
    metavar="NAME",
    multiple=True,
    help="Adapter to hold in memory (repeatable); the last answers.",
)
@click.option("--system", metavar="TEXT", default=None, help="System prompt.")
@click.option("--compare", is_flag=True, help="Let the base and every adapter answer, side by side.")
@click.option(
    "--continue", "resumed", metavar="[ID]", is_flag=False, flag_value="latest", default=None,
    help="Go on with a conversation: the last one, or the one of this ID.",
)  # fmt: skip
@click.option("--list", "listing", is_flag=True, help="List the conversations and leave.")
@settings_options(Sampling)
@backend_option
@precision_option
@home_option
@json_option
def command(
    model: str | None,
    adapters: tuple[str, ...],
    system: str | None,
    compare: bool,
    resumed: str | None,
    listing: bool,
    backend: str,
    precision: str | None,
    home: str | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Chat with a model. Lines that begin with / are commands; /help lists them.

    \b
    finetune-local chat --adapter my-run --compare
    finetune-local chat --continue

    Ctrl-C stops an answer; pressed twice it ends the chat. With --json each answer is one JSON object per line.
    """
    from finetune_local.chat import history
    from finetune_local.chat.session import ChatSession
    from finetune_local.inference.engine import open_chat

    place, sampling = paths.home(home), settings_from(Sampling, settings)
    if listing:
        _list(place, as_json)
        return
    before = history.find(place, resumed) if resumed else None
    last = before.read() if before else None
    if last is not None:
        model, adapters = model or last.begun.get("model"), adapters or tuple(last.begun.get("adapters", ()))
    opened = open_chat(place, model, adapters, backend=backend, precision=precision, note=note, progress=_progress)
    if compare and not opened.adapters:
        raise SpecError(msg("--compare shows the base beside an adapter: choose one with --adapter."))
    if before is None:
        before = history.new(place, str(opened.model.path), [str(path) for path in opened.adapters.values()])
    chat = ChatSession(opened, sampling, system, before)
    if last is not None:
        _answer_as_before(chat, last.answered_by)
    _Terminal(chat, compare, as_json).run()


def _list(home: paths.Home, as_json: bool) -> None:
    from finetune_local.chat import history

    found = [history.summary(one) for one in history.every(home)]
    if as_json:
        emit([one.as_json() for one in found])
    else:
        table(
            ("ID", "TURNS", "BEGINS WITH"),
            ((f.id, f.turns, f.problem or f.title or f.first) for f in found),
        )


def _answer_as_before(chat: ChatSession, name: str | None) -> None:
    """Activate the adapter that gave the last answer of a resumed conversation."""
    if not chat.turns:
        return
    try:
        if name is not None and name not in chat.opened.adapters:
            name = chat.opened.load(name, note)
        chat.use(name)
    except UserError as error:
        note(f"the last answer was by adapter '{name}', which cannot be used now: {error}")


class _Terminal:
    """Reads lines and shows answers."""

    def __init__(self, chat: ChatSession, compare: bool, as_json: bool) -> None:
        self.chat, self.compare, self.as_json = chat, compare, as_json
        self.person = sys.stdin.isatty() and not as_json

    def run(self) -> None:
        """Run until the end of the input or /quit."""
        if self.person:
            opened = self.chat.opened
            with_adapter = f" with {opened.active}" if opened.active else ""
            note(
                f"{opened.model.name}{with_adapter} on {opened.backend}. /help lists commands, Ctrl-C stops an answer."
            )
            for turn in self.chat.turns:
                note(f"{'you' if turn.role == 'user' else turn.role}> {turn.content}")
        for line in self._lines():
            try:
                if line.startswith("/"):
                    if not self._command(line):
                        break
                elif line.strip():
                    self._ask(line)
            except UserError as error:
                if not self.person:
                    raise
                note(message_of(error))

    def _lines(self) -> Iterator[str]:
        if not self.person:
            for line in stdin_text():
                yield line.rstrip("\r\n")
            return
        with suppress(ImportError):
            import readline  # noqa: F401 - gives input() line editing and a history where the system has it
        while True:
            try:
                yield input("you> ")
            except EOFError:
                note("")
                return

    def _command(self, line: str) -> bool:
        from finetune_local.chat.commands import run_command

        outcome = run_command(self.chat, line)
        if outcome.text:
            note(outcome.text) if self.as_json else click.echo(outcome.text)
        if outcome.then == "retry":
            self._answer(lambda on_text, stop: self.chat.retry(on_text, stop))
        return outcome.then != "quit"

    def _ask(self, text: str) -> None:
        if self.compare:
            self._compare(text)
        else:
            self._answer(lambda on_text, stop: self.chat.ask(text, on_text, stop))

    def _answer(self, answer: Callable[[Callable[[str], None], Callable[[], bool]], Turn]) -> None:
        if self.person:
            click.echo(f"{self.chat.opened.active or 'base'}> ", nl=False)
        with _stoppable() as stop:
            turn = answer(self._silent if self.as_json else say, stop)
        if self.as_json:
            emit(turn.as_json())
        else:
            click.echo()
            self._facts(turn)

    def _compare(self, text: str) -> None:
        if self.person and console().is_terminal:
            turns = self._side_by_side(text)
        else:
            with _stoppable() as stop:
                turns = self.chat.ask_all(text, interrupted=stop)
            if self.as_json:
                emit({"answers": [turn.as_json() for turn in turns]})
                return
            for turn in turns:
                say(f"[{turn.adapter or 'base'}]\n{turn.result.text}\n\n")
        for turn in turns[:1]:
            self._facts(turn)

    def _side_by_side(self, text: str) -> list[Turn]:
        from rich.columns import Columns
        from rich.live import Live
        from rich.panel import Panel
        from rich.text import Text

        texts: dict[str | None, str] = dict.fromkeys((None, *self.chat.opened.adapters), "")
        screen = console()
        width = max(20, screen.width // len(texts) - 1)

        def drawn() -> Columns:
            return Columns([Panel(Text(t), title=name or "base", width=width) for name, t in texts.items()], padding=0)

        with _stoppable() as stop, Live(drawn(), console=screen, vertical_overflow="visible") as live:

            def show(name: str | None, piece: str) -> None:
                texts[name] += piece
                live.update(drawn())

            return self.chat.ask_all(text, show, stop)

    def _facts(self, turn: Turn) -> None:
        """Notes on an answer: speed, truncation, turns left out of the context."""
        if turn.left_out:
            note(f"({turn.left_out} of the oldest exchanges no longer fit into the context and were left out)")
        if not self.person:
            return
        made = turn.result
        ended = {"stop": "", "length": ", cut at its longest: /set max_tokens N", "interrupted": ", stopped"}[made.stop]
        note(f"({made.tokens} tokens, {made.tokens / max(made.seconds, 1e-6):.1f} tokens/s{ended})")

    @staticmethod
    def _silent(_piece: str) -> None:
        pass


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """During an answer Ctrl-C requests a stop; a second one ends the chat."""
    pressed = 0

    def on_interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal pressed
        pressed += 1
        if pressed > 1:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield lambda: pressed > 0
    finally:
        signal.signal(signal.SIGINT, before)


def _progress(text: str, _done: float | None) -> None:
    if sys.stderr.isatty():
        note(f"{text} …")
