"""A chat session: a conversation with a model in memory, for the terminal and for the window's worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from finetune_local.chat.history import Conversation, History
from finetune_local.chat.record import Record
from finetune_local.data.conversation import Message
from finetune_local.inference.engine import Opened
from finetune_local.inference.generate import GenerationResult, answer
from finetune_local.inference.sampling import Sampling
from finetune_local.system.errors import OutOfMemory, SpecError, UserError
from finetune_local.system.fields import parse
from finetune_local.system.messages import msg

RESERVE = 0.25  # share of the context reserved for the answer, unless max_tokens is less


@dataclass(frozen=True)
class Turn:
    """One answer, its adapter (None: the base), and how many of the oldest exchanges were left out of the prompt.

    `swap_ms`: the time to activate the adapter, in milliseconds; None if it was active.
    """

    result: GenerationResult
    adapter: str | None
    left_out: int
    swap_ms: float | None = None

    def as_json(self) -> dict[str, Any]:
        """What `chat --json` prints for an answer."""
        return {
            "text": self.result.text,
            "adapter": self.adapter,
            "prompt_tokens": self.result.prompt_tokens,
            "tokens": self.result.tokens,
            "seconds": round(self.result.seconds, 3),
            "first_seconds": round(self.result.first_seconds, 3),
            "stop": self.result.stop,
            "left_out": self.left_out,
            **({} if self.swap_ms is None else {"swap_ms": round(self.swap_ms, 2)}),
        }


class ChatSession:
    """Turns, sampling and adapters of one conversation. Each turn is appended to `history` at once."""

    def __init__(
        self, opened: Opened, sampling: Sampling, system: str | None = None, history: History | None = None
    ) -> None:
        """Start a conversation, or continue that of `history`. `system` replaces its system prompt."""
        self.opened, self.sampling, self.history = opened, sampling, history
        self.record = Record(history)
        if system is not None:
            self.set_system(system)

    @property
    def conversation(self) -> Conversation:
        """The conversation so far."""
        return self.record.conversation

    @property
    def turns(self) -> list[Message]:
        """The turns so far, without the system prompt."""
        return self.conversation.turns

    def ask(
        self,
        text: str,
        on_text: Callable[[str], None] = lambda _: None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> Turn:
        """Ask a question and return the answer. The question is on disk before the answer starts.

        The text of an interrupted answer is kept. Raises SpecError if the question alone fills the context; it is then removed.
        """
        self.record.ask(text)
        return self._answer(on_text, interrupted)

    def retry(
        self,
        on_text: Callable[[str], None] = lambda _: None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> Turn:
        """Answer the last question again with other random numbers. Raises SpecError if there is no question."""
        self.record.again()
        return self._answer(on_text, interrupted)

    def undo(self) -> bool:
        """Remove the last question and its answer; False if there is no question."""
        return self.record.undo()

    def clear(self) -> None:
        """Start over with the same system prompt. The exchanges so far stay in the file."""
        self.record.clear()

    def set_system(self, text: str) -> None:
        """Replace the system prompt; "" removes it."""
        self.record.set_system(text)

    def set_sampling(self, name: str, value: str) -> None:
        """Change one sampling setting, given as text. Raises SpecError, which names the allowed values."""
        settings: Mapping[str, Any] = {**self.sampling.model_dump(), name.replace("-", "_"): value}
        if name == "seed" and value in ("none", "auto", ""):
            settings = {**settings, "seed": None}
        self.sampling = parse(Sampling, settings, "/set")

    def use(self, name: str | None) -> float:
        """Activate a loaded adapter (None: the base) for further answers; returns the time it took in milliseconds."""
        if name is not None and name not in self.opened.adapters:
            raise SpecError(
                msg(
                    "adapter '{name}' is not in memory. Loaded: {names}.",
                    name=name,
                    names=", ".join(self.opened.adapters) or "none",
                )
            )
        return self.opened.activate(name)

    def prompt(self) -> tuple[list[int], int]:
        """Ids of the prompt for the next answer, and how many of the oldest exchanges had to be left out of it."""
        context = self.opened.model.context_length - self.opened.session.virtual_tokens
        reserve = min(self.sampling.max_tokens, int(context * RESERVE))
        turns, left_out = list(self.turns), 0
        while True:
            ids = self.opened.tokenizer.prompt_ids([*self._system(), *turns])
            following = next((i for i in range(1, len(turns)) if turns[i].role == "user"), None)
            if len(ids) + reserve <= context or following is None:
                return ids, left_out
            turns, left_out = turns[following:], left_out + 1

    def ask_all(
        self,
        text: str,
        on_text: Callable[[str | None, str], None] = lambda _name, _text: None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> list[Turn]:
        """Ask the base and every loaded adapter the same question. The conversation continues with the active one's answer."""
        leading = self.opened.active
        self.record.ask(text)
        return self.answer_by((None, *self.opened.adapters), leading, on_text, interrupted)

    def answer_by(
        self,
        answerers: Sequence[str | None],
        leading: str | None,
        on_text: Callable[[str | None, str], None] = lambda _name, _text: None,
        interrupted: Callable[[], bool] = lambda: False,
        *,
        on_begin: Callable[[str | None, float], None] = lambda _name, _milliseconds: None,
        on_tokens: Callable[[str | None, int], None] = lambda _name, _count: None,
        on_turn: Callable[[Turn], None] = lambda _turn: None,
    ) -> list[Turn]:
        """Answer the open question with several adapters in memory (None: the base), one after the other.

        The conversation continues with the answer of `leading`, which is active afterwards; the other answers are kept beside it.
        With a seed all adapters draw the same random numbers. `on_begin` receives the time of the switch in milliseconds. After an
        interruption the remaining adapters do not answer. Raises SpecError if no question is open, or it alone fills the context; it
        is then removed.
        """
        if not self.conversation.open:
            raise SpecError(msg("there is nothing to answer: ask something first."))
        turns: list[Turn] = []
        prompts: Mapping[str | None, tuple[list[int], int]] = {name: self._prompt_or_undo(name) for name in answerers}
        try:
            for name in answerers:
                swap = None if name == self.opened.active else self.use(name)
                on_begin(name, swap or 0.0)
                turn = self._generate(
                    name, *prompts[name], partial(on_text, name), interrupted, partial(on_tokens, name)
                )
                turns.append(replace(turn, swap_ms=swap))
                self._keep(turns[-1], aside=name != leading)
                on_turn(turns[-1])
                if interrupted():
                    break
        finally:
            self.opened.activate(leading)
        return turns

    def _answer(self, on_text: Callable[[str], None], interrupted: Callable[[], bool]) -> Turn:
        ids, left_out = self._prompt_or_undo(self.opened.active)
        turn = self._generate(self.opened.active, ids, left_out, on_text, interrupted)
        self._keep(turn)
        return turn

    def _generate(
        self,
        name: str | None,
        ids: list[int],
        left_out: int,
        on_text: Callable[[str], None],
        interrupted: Callable[[], bool],
        on_tokens: Callable[[int], None] = lambda _count: None,
    ) -> Turn:
        """Generate an answer with the active adapter, `name`."""
        sampling, opened, retries = self.sampling, self.opened, self.conversation.exchanges[-1].retries
        if sampling.seed is not None and retries:
            sampling = sampling.model_copy(update={"seed": sampling.seed + retries})
        try:
            result = answer(
                opened.session,
                opened.tokenizer,
                ids,
                sampling,
                opened.model.context_length,
                on_text=on_text,
                on_tokens=on_tokens,
                interrupted=interrupted,
                running=opened.texts.of(name),
            )
        except OutOfMemory:
            opened.texts.clear()  # so that another attempt has all memory
            raise
        return Turn(result, name, left_out)

    def _prompt_or_undo(self, name: str | None) -> tuple[list[int], int]:
        """The prompt for an adapter. A question that cannot be answered is removed before the error is raised."""
        active = self.opened.active
        try:
            self.opened.activate(name)
            ids, left_out = self.prompt()
            context, taken = self.opened.model.context_length, self.opened.session.virtual_tokens
            if len(ids) >= context - taken:
                less = msg(", of which the adapter uses {taken}", taken=taken) if taken else ""
                raise SpecError(
                    msg(
                        "with this message the prompt has {tokens} tokens, but the model's context is {context}{less}. "
                        "Shorten it, or the system prompt.",
                        tokens=len(ids),
                        context=context,
                        less=less,
                    )
                )
        except UserError:
            self.undo()
            raise
        finally:
            self.opened.activate(active)
        return ids, left_out

    def _keep(self, turn: Turn, *, aside: bool = False) -> None:
        if turn.result.stop == "interrupted" and not turn.result.text.strip():
            return  # there is no text yet: the question stays open, for /retry
        facts = turn.as_json()
        text, adapter = facts.pop("text"), facts.pop("adapter")
        line = (
            {"aside": adapter, "content": text} if aside else {"role": "assistant", "content": text, "adapter": adapter}
        )
        self.record.add({**line, **facts})

    def _system(self) -> list[Message]:
        return [Message("system", self.conversation.system)] if self.conversation.system else []
