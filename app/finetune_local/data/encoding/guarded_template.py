"""A chat template, run in a guarded child: what never ends, takes all memory or raises anything becomes a sentence."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from finetune_local.data.conversation import Message, RowRejected
from finetune_local.data.encoding.chat_template import Span
from finetune_local.system.messages import as_message, message_of, msg
from finetune_local.system.untrusted.guarded import Guarded, GuardedError, Limits, Raised, Setup

SECONDS, SECONDS_PER_MESSAGE, MOST_SECONDS = 2.0, 0.02, 60.0
"""Processor time for a chat. Real templates take a thousandth of a second; but a chat is rendered anew for each answer in it, so one
of 700 messages takes two seconds, which is no fault of its template."""

MOST_BYTES = 2**30

_PATIENCE = 3
"""After so many chats that the template did not end with, no further one is tried: a file may have a million."""

_MOST_AHEAD = 500

_child = Guarded("finetune_local.data.encoding.rendering", Limits(SECONDS, MOST_BYTES))
"""One for all templates of this process."""


class GuardedTemplate:
    """The template `text` with the variables it sees, such as bos_token. `stops` are the texts of the tokens that end a turn."""

    def __init__(self, text: str, variables: Mapping[str, Any]) -> None:
        """Nothing is run yet."""
        self._setup = Setup(json.dumps({"template": text, "variables": dict(variables)}))
        self.stops: Sequence[str] = ()
        self._failed, self._why = 0, ""
        self._facts: dict[str, Any] | None = None
        self._rendered: dict[tuple[Message, ...], dict[str, Any]] = {}

    def render(self, messages: Sequence[Message], generation_prompt: bool = False) -> str:
        """The whole text. Raises RowRejected where the template refuses the messages or fails."""
        asked = {"do": "text", "messages": _plain(messages), "generation_prompt": generation_prompt}
        return str(self._asked(asked, len(messages))["text"])

    def render_chat(
        self,
        chat: Sequence[Mapping[str, Any]],
        generation_prompt: bool = False,
        tools: Sequence[Any] | None = None,
        day: date | None = None,
        variables: Mapping[str, bool] | None = None,
    ) -> str:
        """The text of a chat as transformers takes it, with any keys in its messages, and nothing bridged. `day` stands for today,
        always written like 2021-03-04; `variables` are told to the template beside its own. Raises RowRejected."""
        asked = {"do": "chat", "chat": [dict(m) for m in chat], "generation_prompt": generation_prompt, "tools": tools}
        asked["variables"] = dict(variables or {})
        return str(self._asked({**asked, "day": day.isoformat() if day else None}, len(chat))["text"])

    def spans(self, messages: Sequence[Message], generation_prompt: bool = False) -> tuple[str, list[Span]]:
        """The text and the span of every assistant turn in it; see ChatTemplate.spans. Raises RowRejected."""
        found = None if generation_prompt else self._rendered.pop(tuple(messages), None)
        if found is None:
            asked = {"do": "spans", "messages": _plain(messages), "generation_prompt": generation_prompt}
            found = self._asked({**asked, "stops": list(self.stops)}, len(messages))
        if "refused" in found:
            raise RowRejected(as_message(found["refused"]))
        text = str(found["text"])
        return text, [Span(*span) for span in found["spans"]]

    def ahead(self, chats: Sequence[Sequence[Message]]) -> None:
        """Find the spans of chats that will soon be asked for. Where that fails, each is tried by itself when its turn comes."""
        if self._failed or not chats:
            return
        asked = {"do": "many", "chats": [_plain(m) for m in chats], "stops": list(self.stops)}
        try:
            found = self._asked(asked, sum(map(len, chats)))
        except RowRejected:
            return
        if len(self._rendered) > _MOST_AHEAD:  # of rows that were given up before
            self._rendered.clear()
        self._rendered.update(zip(map(tuple, chats), found["found"], strict=True))

    def after_answer(self) -> str | None:
        """The text that the template puts behind an answer; None where it refuses or fails."""
        after: str | None = self._told()["after_answer"]
        return after

    @property
    def knows_system(self) -> bool:
        """Whether a system text is shown."""
        return bool(self._told()["knows_system"])

    @property
    def knows_tool(self) -> bool:
        """Whether a tool's result is shown."""
        return bool(self._told()["knows_tool"])

    def _told(self) -> dict[str, Any]:
        if self._facts is None:
            try:
                self._facts = self._asked({"do": "facts"})
            except RowRejected:
                # A template that does not end with a chat of two words is not tried again.
                self._failed = max(self._failed, _PATIENCE)
                self._facts = {"knows_system": False, "knows_tool": False, "after_answer": None}
        return self._facts

    def _asked(self, request: dict[str, Any], messages: int = 0) -> dict[str, Any]:
        if self._failed < _PATIENCE:
            seconds = min(_child.limits.seconds + messages * SECONDS_PER_MESSAGE, MOST_SECONDS)
            try:
                reply = _child.ask(request, self._setup, answering=seconds)
            except GuardedError as error:
                self._failed, self._why = self._failed + (not isinstance(error, Raised)), message_of(error)
            else:
                if "refused" in reply:
                    raise RowRejected(as_message(reply["refused"]))
                return dict(reply)
        raise RowRejected(
            msg(
                "the model's chat template cannot be used with it: {error}. Use another template, or --template raw.",
                error=self._why,
            )
        )


def _plain(messages: Sequence[Message]) -> list[list[str]]:
    return [[m.role, m.content] for m in messages]
