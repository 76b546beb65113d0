"""A conversation with a model in memory: what the terminal and the window both talk to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from finetune_local.chat.compare import compare
from finetune_local.chat.generate import GenerationResult, answer
from finetune_local.chat.history import Conversation, History
from finetune_local.chat.opening import Opened
from finetune_local.chat.sampling import Sampling
from finetune_local.chat.text import RunningText
from finetune_local.data.conversation import Message
from finetune_local.errors import SpecError, UserError
from finetune_local.spec.fields import parse

RESERVE = 0.25  # of the context is kept for the answer, where max_tokens does not ask for less


@dataclass(frozen=True)
class Turn:
    """One answer: by which adapter (None: the base), and how many old exchanges no longer fitted into the context."""

    result: GenerationResult
    adapter: str | None
    left_out: int

    def as_json(self) -> dict[str, Any]:
        """What `chat --json` prints for an answer."""
        return {
            "text": self.result.text,
            "adapter": self.adapter,
            "prompt_tokens": self.result.prompt_tokens,
            "tokens": self.result.tokens,
            "seconds": round(self.result.seconds, 3),
            "stop": self.result.stop,
            "left_out": self.left_out,
        }


class ChatSession:
    """Turns, sampling and adapters of one conversation. `history` is where each turn is kept as it happens."""

    def __init__(
        self, opened: Opened, sampling: Sampling, system: str | None = None, history: History | None = None
    ) -> None:
        """Begin, or go on where `history` ends. A `system` given here replaces the conversation's own."""
        self.opened, self.sampling, self.history = opened, sampling, history
        self.conversation = history.read() if history is not None else Conversation()
        self._running, self._retries = RunningText(), 0
        if system is not None and system != self.conversation.system:
            self.set_system(system)

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
        """Say something and get the answer. The question is on disk before the answer begins.

        An interrupted answer is kept as far as it came. Raises SpecError where the question alone fills the context; it
        is then taken back.
        """
        if self.turns and self.turns[-1].role == "user":
            self.undo()  # a question that never got its answer: turns have to alternate
        self._record({"role": "user", "content": text})
        self._retries = 0
        return self._answer(on_text, interrupted)

    def retry(
        self,
        on_text: Callable[[str], None] = lambda _: None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> Turn:
        """Answer the last question again, by other random numbers. Raises SpecError where nothing was asked."""
        if not self.turns:
            raise SpecError("there is nothing to answer again: nothing was said yet.")
        if self.turns[-1].role == "assistant":
            self._record({"undo": "answer"})
            self._retries += 1
        return self._answer(on_text, interrupted)

    def undo(self) -> bool:
        """Take back the last question and its answer; False where there is none."""
        if not any(turn.role == "user" for turn in self.turns):
            return False
        self._record({"undo": "exchange"})
        return True

    def clear(self) -> None:
        """Begin anew, with the same system prompt. What was said stays in the file."""
        if self.turns:
            self._record({"clear": True})

    def set_system(self, text: str) -> None:
        """Replace the system prompt; "" removes it."""
        self._record({"role": "system", "content": text})

    def set_sampling(self, name: str, value: str) -> None:
        """Change one sampling setting from its text. Raises SpecError naming what is allowed."""
        given: Mapping[str, Any] = {**self.sampling.model_dump(), name.replace("-", "_"): value}
        if name == "seed" and value in ("none", "auto", ""):
            given = {**given, "seed": None}
        self.sampling = parse(Sampling, given, "/set")

    def use(self, name: str | None) -> float:
        """Answer with a loaded adapter (None: the base) from now on; returns the milliseconds the swap took."""
        if name is not None and name not in self.opened.adapters:
            raise SpecError(f"adapter '{name}' is not in memory. Loaded: {', '.join(self.opened.adapters) or 'none'}.")
        self._running.reset()
        return self.opened.activate(name)

    def prompt(self) -> tuple[list[int], int]:
        """Ids of the prompt for the next answer, and how many of the oldest exchanges it leaves out for lack of room."""
        context = self.opened.model.context_length - self.opened.session.positions
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
        """Ask the base and every loaded adapter the same; the conversation goes on with the active one's answer."""
        if self.turns and self.turns[-1].role == "user":
            self.undo()
        self._record({"role": "user", "content": text})
        ids, left_out = self._prompt_or_undo()
        made = compare(self.opened, ids, self.sampling, on_text, interrupted)
        answers = [Turn(result, name, left_out) for name, result in made.items()]
        for turn in answers:
            if turn.adapter == self.opened.active:
                self._keep(turn)
        return answers

    def _answer(self, on_text: Callable[[str], None], interrupted: Callable[[], bool]) -> Turn:
        ids, left_out = self._prompt_or_undo()
        sampling, opened = self.sampling, self.opened
        if sampling.seed is not None and self._retries:
            sampling = sampling.model_copy(update={"seed": sampling.seed + self._retries})
        made = answer(
            opened.session,
            opened.tokenizer,
            ids,
            sampling,
            opened.model.context_length,
            on_text=on_text,
            interrupted=interrupted,
            running=self._running,
        )
        turn = Turn(made, opened.active, left_out)
        self._keep(turn)
        return turn

    def _prompt_or_undo(self) -> tuple[list[int], int]:
        """The prompt; a question that can never be answered is taken back before the error goes on."""
        try:
            ids, left_out = self.prompt()
            context, taken = self.opened.model.context_length, self.opened.session.positions
            if len(ids) >= context - taken:
                less = f", of which the adapter takes {taken}" if taken else ""
                raise SpecError(
                    f"this message makes a prompt of {len(ids)} tokens, but the model's context is {context}{less}. "
                    "Shorten it, or the system prompt."
                )
        except UserError:
            self.undo()
            raise
        return ids, left_out

    def _keep(self, turn: Turn) -> None:
        if turn.result.stop == "interrupted" and not turn.result.text.strip():
            return  # nothing was said yet: the question waits for /retry
        facts = turn.as_json()
        self._record({"role": "assistant", "content": facts.pop("text"), **facts})

    def _system(self) -> list[Message]:
        return [Message("system", self.conversation.system)] if self.conversation.system else []

    def _record(self, line: dict[str, Any]) -> None:
        if self.history is not None:
            self.history.append(line)
        self.conversation.apply(line)
